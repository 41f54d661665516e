"""Text to tokens and back: a tokenizer with what ends a text, detokenising bit by bit, and stop strings.

Bit by bit means that a character whose bytes are spread over tokens appears when it is whole, and never as a torn one.
A special token that is spelt out in a text (`<|im_end|>`) is that token or plain text, as the caller says.
All of it is pure: how far a text has come is a value (`Written`). This module knows nothing of models or files.

Try it: ``pytest tests/plugins/studio_gpt/test_tokens.py``
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from studio.caching import cached_property
from studio.errors import InputError

if TYPE_CHECKING:
    import tokenizers

TORN = "\ufffd"  # what bytes that are no whole character decode to
TURN_ENDS = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>",
    "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "<|eot|>", "<|eom|>", "<|return|>", "<|call|>", "<EOT>", "_<EOT>",
    "[EOT]", "<turn|>", "<end_of_utterance>", "<|endofturn|>", "<｜end▁of▁sentence｜>",
})  # fmt: skip
"""Names that end a turn in published chat models; llama.cpp knows most of them by name too."""


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer.

    Attributes:
        tokenizer: of the library `tokenizers`.
        ends: tokens after which nothing follows.
        chat_template: how the model's own chats are written, in Jinja, if it has one.
        specials: the texts of named special tokens (``bos_token``, ``eos_token`` …), as chat templates use them.
        first: the token that a chat begins with even where its template does not write it; None is none.
        one_turn: it was trained on single questions, so what was said before would only mislead it.
    """

    tokenizer: tokenizers.Tokenizer
    ends: frozenset[int]
    chat_template: str | None = None
    specials: dict[str, str] = field(default_factory=dict)
    first: int | None = None
    one_turn: bool = False

    @cached_property
    def size(self) -> int:
        """Tokens that it knows: one more than the highest number."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def control(self, template: str = "") -> dict[str, int]:
        """Control tokens by their text: special ones, and those in brackets that a chat `template` spells out."""
        return {
            each.content: number
            for number, each in self.tokenizer.get_added_tokens_decoder().items()
            if (each.special and len(each.content) > 1) or (each.content in template and _bracketed(each.content))
        }

    def encode(self, text: str, *, plain: bool = True, literal: bool = False) -> list[int]:
        """The tokens of a text. A special token that is spelt out in it is taken as that token, unless it is `literal`.

        What the tokenizer puts around every text (a first token, for Llama) is added if `plain`; a rendered chat has it
        already. Raises InputError for a lone surrogate, which no tokenizer can take.
        """
        _check_whole(text)
        tokenizer = self._split.tokenizer if literal else self.tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=plain).ids
        return ids

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """The tokens of a text in which only control tokens without a `mark` inside are taken as such.

        What the tokenizer's normaliser would make one of (full-width brackets, capitals) is text. `mark` is a character
        that the text has nowhere else; it is left out. Raises InputError as `encode` does.
        """
        _check_whole(text)
        control = self.control(self.chat_template or "")
        ids = self._split.encode_marked(text, mark, control)
        if ids is None and mark not in text:
            return self.encode(text, plain=False)
        return self._always_split.encode_marked(text, mark, control) or [] if ids is None else ids

    @cached_property
    def _split(self) -> _Literal:
        """A twin of the tokenizer that takes control tokens as text."""
        return _Literal.of(self.tokenizer, self.control(self.chat_template or ""))

    @cached_property
    def _always_split(self) -> _Literal:
        """One that looks for what stands for control tokens before its normaliser: a normaliser that puts a blank
        before every text makes tokens that are looked for behind it unfindable in the middle of a text.
        """
        return _Literal.of(self.tokenizer, self.control(self.chat_template or ""), normalized=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> str:
        """One token as it is shown to people: special ones by name, torn bytes as U+FFFD."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text


@dataclass(frozen=True)
class _Literal:
    """A tokenizer for which control tokens are text, and what stands for each of them where it is meant as a token.

    Attributes:
        places: for each control token a text that nobody can guess, and that is found in the same way.
        numbers: the numbers of these texts.
    """

    tokenizer: tokenizers.Tokenizer
    places: dict[str, str]
    numbers: frozenset[int]

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, control: Collection[str], normalized: bool = True) -> _Literal:
        """`normalized` is whether tokens that are looked for behind the normaliser have a place there too."""
        from tokenizers import AddedToken, Tokenizer

        told = json.loads(tokenizer.to_str())
        for each in told["added_tokens"]:
            each["special"] = each["special"] or each["content"] in control
        twin = Tokenizer.from_str(json.dumps(told))
        for each in told["added_tokens"]:
            each["normalized"] = each["normalized"] and normalized
        kinds = {_flags(each): f"\ufdd0{secrets.token_hex(8)}\ufdd1" for each in told["added_tokens"]}
        twin.add_tokens([AddedToken(text, **dict(flags)) for flags, text in kinds.items()])
        twin.encode_special_tokens = True
        places = {each["content"]: kinds[_flags(each)] for each in told["added_tokens"]}
        numbers: list[Any] = [twin.token_to_id(text) for text in kinds.values()]
        return cls(twin, places, frozenset(numbers))

    def encode_marked(self, text: str, mark: str, control: Mapping[str, int]) -> list[int] | None:
        """As `Tokens.encode_marked`; None if the tokenizer did not find each control token again."""
        found: list[int] = []

        def put_aside(match: re.Match[str]) -> str:
            found.append(control[match[0]])
            return self.places[match[0]]

        told = _any_of(control).sub(put_aside, text).replace(mark, "") if control else text.replace(mark, "")
        ids: list[int] = self.tokenizer.encode(told, add_special_tokens=False).ids
        if sum(each in self.numbers for each in ids) != len(found):
            return None
        numbers = iter(found)
        return [next(numbers) if each in self.numbers else each for each in ids]


def _flags(added: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    """How an added token is found in a text."""
    return tuple((name, bool(added[name])) for name in ("lstrip", "rstrip", "single_word", "normalized"))


def breaker(control: Collection[str], mark: str) -> Callable[[str], str]:
    """What puts a `mark` into every control token that a text spells out, and where the text may be a piece of one.

    Blanks around a text stay outside, so that a chat template that trims it gives the same.
    """
    starts = {each[:size] for each in control for size in range(1, len(each))}
    ends = {each[-size:] for each in control for size in range(1, len(each))}
    longest, whole = max(map(len, control), default=0), "\0".join(control)
    pattern = re.compile(f"(?={_any_of(control).pattern})(.)", re.DOTALL)

    def broken(text: str) -> str:
        bare = text.strip()
        if not control or not bare:
            return text
        sizes = range(1, min(longest, len(bare) + 1))
        inside = bare in whole
        begin = mark if inside or any(bare[:size] in ends for size in sizes) else ""
        end = mark if inside or any(bare[-size:] in starts for size in sizes) else ""
        return text.replace(bare, begin + pattern.sub(rf"\1{mark}", bare) + end)

    return broken


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds the first of these texts, and the longest of those that begin there."""
    return re.compile("(?:" + "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) + ")")


def _bracketed(text: str) -> bool:
    """Whether it looks as a control token does: in brackets of any kind, and more than one character."""
    return len(text) > 2 and not (text[0].isalnum() or text[0].isspace() or text[-1].isalnum() or text[-1].isspace())


def _check_whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"`prompt` has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start + 1}"
        raise InputError("prompt", message, hint="it is half of a character: take it out") from None


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
