"""Constrained decoding (structured output): which tokens keep the output valid JSON for a JSON Schema.

The grammars are llguidance's (MIT; `docs/log.md` says why it was chosen). A schema is compiled once for a tokenizer,
and gives a mask for each step; its state is only the tokens so far, so a resumed request replays them. Whitespace is
fixed (`{"a": 1, "b": 2}`), so that no model can generate blanks for ever.

Try it::

    matcher = Constraint.compile({"enum": ["yes", "no"]}, tokenizer, eos=2).start()
    logits[~matcher.mask()] = float("-inf")
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch

from studio.errors import InputError, StudioError
from studio_gpt.schema import SUPPORTED, checked, refused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from tokenizers import Tokenizer

TOKENIZERS, CONSTRAINTS = 4, 64  # cached; reading a tokenizer of 49,152 tokens takes about 0.5 s
SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_lock = threading.Lock()
_tokenizers: OrderedDict[tuple[int, tuple[int, ...], int], tuple[Tokenizer, LLTokenizer]] = OrderedDict()
_constraints: OrderedDict[tuple[int, str], Constraint] = OrderedDict()


class Constraint:
    """A schema compiled for one tokenizer, shared by all requests with that schema.

    `width`: entries of a mask, as many as the model's logits.
    """

    def __init__(self, grammar: str, tokenizer: LLTokenizer, eos: tuple[int, ...], width: int) -> None:
        self.eos, self.width = eos, width
        self._grammar, self._tokenizer = grammar, tokenizer

    @classmethod
    def compile(
        cls,
        schema: dict[str, Any] | bool | str,
        tokenizer: Tokenizer,
        eos: int | Sequence[int],
        width: int | None = None,
    ) -> Constraint:
        """Compile a constraint, or return the cached one.

        Args:
            schema: a JSON Schema, as JSON text or parsed.
            tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen) or sentencepiece style (Llama 2, Mistral).
            eos: the token or tokens that end an answer.
            width: size of the model's logits, if padding makes them larger than the vocabulary.

        Raises InputError (`json_schema`) for an invalid or unsupported schema.
        """
        text = checked(schema)
        ends = (eos,) if isinstance(eos, int) else tuple(eos)
        with _lock:
            known = _known_tokenizer(tokenizer, ends, width)
            key = (id(known), text)
            if key not in _constraints:
                _constraints[key] = cls(_grammar(text, known), known, ends, known.vocab_size)
                if len(_constraints) > CONSTRAINTS:
                    _constraints.popitem(last=False)
            _constraints.move_to_end(key)
            return _constraints[key]

    def start(self, tokens: Sequence[int] = ()) -> Matcher:
        """A matcher at the beginning of the output, or after `tokens`. Raises StudioError if the schema rejects
        them.
        """
        from llguidance import LLMatcher

        matcher = Matcher(self, LLMatcher(self._tokenizer, self._grammar, log_level=0))
        for token in tokens:
            matcher.accept(token)
        return matcher


class Matcher:
    """The progress of one output. Only `tokens` needs to be saved: `constraint.start(tokens)` restores a matcher."""

    def __init__(self, constraint: Constraint, matcher: LLMatcher) -> None:
        self.constraint, self.tokens = constraint, list[int]()
        self._matcher = matcher

    def mask(self) -> torch.Tensor:
        """The allowed next tokens: (width,) bool, on the CPU. After the output is done, only end tokens."""
        if self.done:
            allowed = torch.zeros(self.constraint.width, dtype=torch.bool)
            allowed[list(self.constraint.eos)] = True
            return allowed
        bias = self._matcher.compute_logit_bias()
        self._check()
        return torch.frombuffer(bytearray(bias), dtype=torch.uint8).bool()  # (width,)

    def accept(self, token: int) -> Self:
        """Advance by one token. Raises StudioError for a token that the schema does not allow here."""
        ended = self.done and token in self.constraint.eos
        if not ended and not (0 <= token < self.constraint.width and self._matcher.try_consume_tokens([token])):
            self._check()
            place = len(self.tokens)
            raise StudioError(f"the schema does not allow the token {token} at position {place}")
        self.tokens.append(token)
        return self

    @property
    def done(self) -> bool:
        """Whether the output is complete and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def accepting(self) -> bool:
        """Whether the output would be complete if it ended here."""
        return self._matcher.is_accepting()

    def copy(self) -> Matcher:
        """An independent matcher at the same position."""
        twin = Matcher(self.constraint, self._matcher.deep_copy())
        twin.tokens = list(self.tokens)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("save `matcher.tokens` and call `constraint.start(tokens)`; a matcher itself is not pickled")

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise StudioError(f"the schema is too complex: {reason}", hint="use a simpler schema")


class SchemaRule:
    """A constraint as a `Rule` of `sampling`; the tokens may go back and branch between calls."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint, self._matcher = constraint, constraint.start()

    def mask(self, written: Sequence[int]) -> torch.Tensor:
        """The allowed next tokens: (width,) bool. Raises StudioError if the schema rejects `written`."""
        known = self._matcher.tokens
        if list(written[: len(known)]) != known:
            self._matcher = self.constraint.start()
        for token in written[len(self._matcher.tokens) :]:
            self._matcher.accept(token)
        return self._matcher.mask()


def _known_tokenizer(tokenizer: Tokenizer, eos: tuple[int, ...], width: int | None) -> LLTokenizer:
    """llguidance's form of a tokenizer, cached together with the tokenizer itself."""
    from llguidance import LLTokenizer

    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1 if width is None else width
    key = (id(tokenizer), eos, size)
    if key not in _tokenizers:
        try:
            made = LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=list(eos), slices=LLTokenizer.json_slices())
        except Exception as error:  # llguidance raises plain Exceptions
            reason = (str(error).strip().splitlines() or ["unknown"])[0]
            raise StudioError(f"JSON Schemas do not work with this tokenizer: {reason}") from error
        _tokenizers[key] = (tokenizer, made)
        if len(_tokenizers) > TOKENIZERS:
            _, gone = _tokenizers.popitem(last=False)[1]
            for old in [each for each in _constraints if each[0] == id(gone)]:
                del _constraints[old]
    _tokenizers.move_to_end(key)
    return _tokenizers[key][1]


def _grammar(text: str, tokenizer: LLTokenizer) -> str:
    """llguidance's grammar of a schema. Raises InputError."""
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=SPACING)
    except ValueError as error:
        raise _refused(str(error)) from error
    if problem := LLMatcher.validate_grammar(grammar, tokenizer):
        raise _refused(problem)
    return grammar


def _refused(reason: str) -> InputError:
    """The error for a schema that llguidance rejects with a reason."""
    message = " ".join(reason.split())[:300]
    if keys := re.search(r"Unimplemented keys: \[(.*?)\]", message):
        return refused(f"uses {keys[1].replace(chr(34), '`')}, which is not supported", SUPPORTED)
    return refused(f"cannot be compiled: {message}", SUPPORTED)
