"""Text that must be JSON of a given schema: at each step, which tokens keep the answer completable.

The grammar work is llguidance's (MIT; `docs/log.md` says why it was chosen). What stands here is its use: compiled once
for a schema and a tokenizer, a mask for each step, and a state that is nothing but the tokens so far, so that a saved
request is taken up by replaying them. It knows nothing of models or sampling. Whitespace is fixed (`{"a": 1, "b": 2}`),
so that no model can write blanks for ever.

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

TOKENIZERS, CONSTRAINTS = 4, 64  # how many are kept; reading a tokenizer of 49,152 tokens takes about 0.5 s
SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_lock = threading.Lock()
_tokenizers: OrderedDict[tuple[int, tuple[int, ...], int], tuple[Tokenizer, LLTokenizer]] = OrderedDict()
_constraints: OrderedDict[tuple[int, str], Constraint] = OrderedDict()


class Constraint:
    """A schema, ready for the tokens of one tokenizer. Shared by all requests that ask for it.

    `width`: entries of a mask, those of the model's logits.
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
        """Make the constraint, or return the one made before.

        Args:
            schema: a JSON Schema, as JSON text or as what that text means.
            tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen) or sentencepiece style (Llama 2, Mistral).
            eos: the token or tokens that end an answer.
            width: of the model's logits, where padding makes them wider than the tokenizer.

        Raises InputError (`json_schema`) for what is not a schema, or asks for what is not supported.
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
        """A matcher at the beginning of an answer, or after `tokens`. Raises StudioError if they do not fit."""
        from llguidance import LLMatcher

        matcher = Matcher(self, LLMatcher(self._tokenizer, self._grammar, log_level=0))
        for token in tokens:
            matcher.accept(token)
        return matcher


class Matcher:
    """How far one answer is. `tokens` is all that there is to save: `constraint.start(tokens)` is the same again."""

    def __init__(self, constraint: Constraint, matcher: LLMatcher) -> None:
        self.constraint, self.tokens = constraint, list[int]()
        self._matcher = matcher

    def mask(self) -> torch.Tensor:
        """Which tokens may come next: (width,) bool, on the CPU. When the answer is done, those that end it alone."""
        if self.done:
            allowed = torch.zeros(self.constraint.width, dtype=torch.bool)
            allowed[list(self.constraint.eos)] = True
            return allowed
        bias = self._matcher.compute_logit_bias()
        self._check()
        return torch.frombuffer(bytearray(bias), dtype=torch.uint8).bool()  # (width,)

    def accept(self, token: int) -> Self:
        """Go on by one token. Raises StudioError for one that the schema does not allow here."""
        ended = self.done and token in self.constraint.eos
        if not ended and not (0 <= token < self.constraint.width and self._matcher.try_consume_tokens([token])):
            self._check()
            place = len(self.tokens)
            raise StudioError(f"the token {token} cannot stand at place {place} of what the schema allows")
        self.tokens.append(token)
        return self

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def accepting(self) -> bool:
        """Whether the answer would be complete if it ended here."""
        return self._matcher.is_accepting()

    def copy(self) -> Matcher:
        """Another matcher at the same place, which goes its own way: a step leaves its states as they were."""
        twin = Matcher(self.constraint, self._matcher.deep_copy())
        twin.tokens = list(self.tokens)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("save `matcher.tokens` and call `constraint.start(tokens)`; a matcher itself is not pickled")

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise StudioError(f"the schema became too much to follow: {reason}", hint="use a simpler schema")


class SchemaRule:
    """A constraint as a `Rule` of `sampling`: the mask after what was written, which may go back and branch."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint, self._matcher = constraint, constraint.start()

    def mask(self, written: Sequence[int]) -> torch.Tensor:
        """Which tokens may follow: (width,) bool. Raises StudioError if what was written does not fit the schema."""
        known = self._matcher.tokens
        if list(written[: len(known)]) != known:
            self._matcher = self.constraint.start()
        for token in written[len(self._matcher.tokens) :]:
            self._matcher.accept(token)
        return self._matcher.mask()


def _known_tokenizer(tokenizer: Tokenizer, eos: tuple[int, ...], width: int | None) -> LLTokenizer:
    """llguidance's form of a tokenizer, which is kept as long as this holds on to the tokenizer itself."""
    from llguidance import LLTokenizer

    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1 if width is None else width
    key = (id(tokenizer), eos, size)
    if key not in _tokenizers:
        try:
            made = LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=list(eos), slices=LLTokenizer.json_slices())
        except Exception as error:  # its own are plain Exceptions
            reason = (str(error).strip().splitlines() or ["unknown"])[0]
            raise StudioError(f"this tokenizer cannot be held to a schema: {reason}") from error
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
    """What to raise for what llguidance says of a schema."""
    told = " ".join(reason.split())[:300]
    if keys := re.search(r"Unimplemented keys: \[(.*?)\]", told):
        return refused(f"uses {keys[1].replace(chr(34), '`')}, which is not supported", SUPPORTED)
    return refused(f"cannot be followed: {told}", SUPPORTED)
