"""Text to tokens and back: a model's tokenizer, incremental detokenization, and stop strings.

A character whose bytes are spread over several tokens appears when it is complete, and never as U+FFFD before. A
special token that is spelt out in a text (`<|im_end|>`) is that token or plain text, as the caller says. All of it is
pure: the progress of detokenization is a value (`DetokenizedText`).

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

TORN = "\ufffd"  # what an incomplete character decodes to
TURN_ENDS = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>",
    "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "<|eot|>", "<|eom|>", "<|return|>", "<|call|>", "<EOT>", "_<EOT>",
    "[EOT]", "<turn|>", "<end_of_utterance>", "<|endofturn|>", "<｜end▁of▁sentence｜>",
})  # fmt: skip
"""End-of-turn tokens of published chat models; llama.cpp lists most of them too."""


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer.

    Attributes:
        tokenizer: of the library `tokenizers`.
        ends: tokens that end a text.
        chat_template: the model's Jinja chat template, or None.
        specials: the texts of named special tokens (``bos_token``, ``eos_token`` …), as chat templates use them.
        first: the token that a chat begins with even if its template does not write it, or None.
        one_turn: the model was trained on single messages, so earlier turns are ignored.
    """

    tokenizer: tokenizers.Tokenizer
    ends: frozenset[int]
    chat_template: str | None = None
    specials: dict[str, str] = field(default_factory=dict)
    first: int | None = None
    one_turn: bool = False

    @cached_property
    def size(self) -> int:
        """The vocabulary size: one more than the highest token id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def control(self, template: str = "") -> dict[str, int]:
        """Control tokens by their text: special ones, and those in brackets that a chat `template` spells out."""
        return {
            each.content: number
            for number, each in self.tokenizer.get_added_tokens_decoder().items()
            if (each.special and len(each.content) > 1) or (each.content in template and _bracketed(each.content))
        }

    def encode(self, text: str, *, plain: bool = True, literal: bool = False) -> list[int]:
        """The tokens of a text. A special token that is spelt out in it becomes that token, unless `literal`.

        The tokens that the tokenizer puts around every text (BOS, for Llama) are added if `plain`; a rendered chat has
        them already. Raises InputError for a lone surrogate, which no tokenizer accepts.
        """
        _check_whole(text)
        tokenizer = self._split.tokenizer if literal else self.tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=plain).ids
        return ids

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """The tokens of a text; a control token with a `mark` inside is plain text.

        Text that the tokenizer's normaliser would turn into a control token (full-width brackets, capitals) is plain
        text too. `mark` is a character that occurs nowhere else; it is removed. Raises InputError as `encode` does.
        """
        _check_whole(text)
        control = self.control(self.chat_template or "")
        ids = self._split.encode_marked(text, mark, control)
        if ids is None and mark not in text:
            return self.encode(text, plain=False)
        return self._always_split.encode_marked(text, mark, control) or [] if ids is None else ids

    @cached_property
    def _split(self) -> _Literal:
        """A copy of the tokenizer for which control tokens are text."""
        return _Literal.of(self.tokenizer, self.control(self.chat_template or ""))

    @cached_property
    def _always_split(self) -> _Literal:
        """A copy that matches the stand-ins of control tokens before its normaliser: a normaliser that puts a blank
        before every text would hide those that are matched behind it.
        """
        return _Literal.of(self.tokenizer, self.control(self.chat_template or ""), normalized=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> str:
        """One token for display: special tokens by name, incomplete characters as U+FFFD."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text


@dataclass(frozen=True)
class _Literal:
    """A tokenizer for which control tokens are text, with a stand-in for each control token that is meant as a token.

    Attributes:
        stand_ins: for each control token a random text that is matched in the same way.
        numbers: the token ids of these texts.
    """

    tokenizer: tokenizers.Tokenizer
    stand_ins: dict[str, str]
    numbers: frozenset[int]

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, control: Collection[str], normalized: bool = True) -> _Literal:
        """`normalized` is whether tokens that are matched behind the normaliser keep being matched there."""
        from tokenizers import AddedToken, Tokenizer

        content = json.loads(tokenizer.to_str())
        for each in content["added_tokens"]:
            each["special"] = each["special"] or each["content"] in control
        twin = Tokenizer.from_str(json.dumps(content))
        for each in content["added_tokens"]:
            each["normalized"] = each["normalized"] and normalized
        kinds = {_flags(each): f"\ufdd0{secrets.token_hex(8)}\ufdd1" for each in content["added_tokens"]}
        twin.add_tokens([AddedToken(text, **dict(flags)) for flags, text in kinds.items()])
        twin.encode_special_tokens = True
        stand_ins = {each["content"]: kinds[_flags(each)] for each in content["added_tokens"]}
        numbers: list[Any] = [twin.token_to_id(text) for text in kinds.values()]
        return cls(twin, stand_ins, frozenset(numbers))

    def encode_marked(self, text: str, mark: str, control: Mapping[str, int]) -> list[int] | None:
        """As `Tokens.encode_marked`; None if the tokenizer did not find each stand-in."""
        found: list[int] = []

        def substitute(match: re.Match[str]) -> str:
            found.append(control[match[0]])
            return self.stand_ins[match[0]]

        marked = _any_of(control).sub(substitute, text).replace(mark, "") if control else text.replace(mark, "")
        ids: list[int] = self.tokenizer.encode(marked, add_special_tokens=False).ids
        if sum(each in self.numbers for each in ids) != len(found):
            return None
        numbers = iter(found)
        return [next(numbers) if each in self.numbers else each for each in ids]


def _flags(added: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    """How an added token is matched in a text."""
    return tuple((name, bool(added[name])) for name in ("lstrip", "rstrip", "single_word", "normalized"))


def breaker(control: Collection[str], mark: str) -> Callable[[str], str]:
    """A function that puts a `mark` into every control token that a text spells out, and where the text may be part of
    one.

    Blanks around a text stay outside the marks, so that a chat template that trims it gives the same.
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
    """A pattern that matches the first of these texts, and the longest that begins there."""
    return re.compile("(?:" + "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) + ")")


def _bracketed(text: str) -> bool:
    """Whether it looks like a control token: in brackets of any kind, and more than two characters."""
    return len(text) > 2 and not (text[0].isalnum() or text[0].isspace() or text[-1].isalnum() or text[-1].isspace())


def _check_whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"`prompt` has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start + 1}"
        raise InputError("prompt", message, hint="a lone surrogate is not a character: remove it") from None


@dataclass(frozen=True)
class DetokenizedText:
    """The text so far: `text` is that of the tokens up to `read`; the tokens from `start` on are context for the next
    ones.

    A tokenizer may decode a token differently at the beginning of a text (without its space), so the next tokens are
    decoded together with some earlier ones.
    """

    text: str = ""
    start: int = 0
    read: int = 0

    def grow(
        self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str], *, last: bool = False
    ) -> DetokenizedText:
        """The text of all `tokens`, of which those up to `read` are known; incomplete characters wait unless this is
        the `last` call.
        """
        known = decode(tokens[self.start : self.read])
        now = decode(tokens[self.start :])
        if len(now) <= len(known) or (now.endswith(TORN) and not last):
            return self
        return DetokenizedText(self.text + now[len(known) :], self.read, len(tokens))


def find_stop(text: str, stops: Sequence[str], seen: int = 0) -> int | None:
    """Where the first stop string begins, or None. The first `seen` characters were searched before.

    The first is the one that is complete first, the longest of those that end there: so it does not depend on how many
    characters come at once.
    """
    longest = max(map(len, stops), default=0)
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop, max(0, seen - longest + 1))) >= 0]
    return min(found)[1] if found else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string, and are not shown yet."""
    for length in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
