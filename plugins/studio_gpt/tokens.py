"""Text to tokens and back: a tokenizer with what ends a text, detokenising bit by bit, and stop strings.

Bit by bit means that a character whose bytes are spread over tokens appears when it is whole, and never as a torn one.
All of it is pure: how far a text has come is a value (`Written`). This module knows nothing of models or files.

Try it: ``pytest tests/plugins/studio_gpt/test_tokens.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from studio.caching import cached_property
from studio.errors import InputError

if TYPE_CHECKING:
    import tokenizers

TORN = "\ufffd"  # what bytes that are no whole character decode to


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer.

    Attributes:
        tokenizer: of the library `tokenizers`.
        ends: tokens after which nothing follows.
        chat_template: how the model's own chats are written, in Jinja, if it has one.
        specials: the texts of named special tokens (``bos_token``, ``eos_token`` …), as chat templates use them.
    """

    tokenizer: tokenizers.Tokenizer
    ends: frozenset[int]
    chat_template: str | None = None
    specials: dict[str, str] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        """Tokens that it knows: one more than the highest number."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, *, plain: bool = True) -> list[int]:
        """The tokens of a text. A special token that is spelt out in it is taken as that token.

        What the tokenizer puts around every text (a first token, for Llama) is added if `plain`; a rendered chat has it
        already. Raises InputError for a lone surrogate, which no tokenizer can take.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"`prompt` has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start + 1}"
            raise InputError("prompt", message, hint="it is half of a character: take it out") from None
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=plain).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> str:
        """One token as it is shown to people: special ones by name, torn bytes as U+FFFD."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text


@dataclass(frozen=True)
class Written:
    """A text so far. `text` is the text of tokens up to `read`; those from `start` on decide how the next are read.

    A tokenizer may read a token otherwise at the beginning of a text (a space is dropped), so the next tokens are
    decoded together with some that are known.
    """

    text: str = ""
    start: int = 0
    read: int = 0

    def grow(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str], *, last: bool = False) -> Written:
        """The text now that there are these tokens (all from the beginning); torn characters wait unless it is the
        `last` time.
        """
        known = decode(tokens[self.start : self.read])
        now = decode(tokens[self.start :])
        if len(now) <= len(known) or (now.endswith(TORN) and not last):
            return self
        return Written(self.text + now[len(known) :], self.read, len(tokens))


def find_stop(text: str, stops: Sequence[str], seen: int = 0) -> int | None:
    """Where the first of the stop strings begins, or None. The first `seen` characters are known to have none."""
    longest = max(map(len, stops), default=0)
    found = [at for stop in stops if (at := text.find(stop, max(0, seen - longest + 1))) >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string, and must not be shown yet."""
    for length in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
