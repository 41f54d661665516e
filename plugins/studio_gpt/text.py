"""The generator `text`: a prompt goes on, token by token, on any model that `load.py` reads.

A step takes every request further: by a chunk of its prompt, or by a token (by several, where guessed ones turn out
right). Requests that write share steps whatever their lengths, prompts and settings. What is saved of a request are its
tokens; the cache of keys and values is computed again. Importing this loads no torch; `load` does.

Try it: ``studio text --model model.gguf "Once upon a time"``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import field_validator, model_validator

import studio
from studio.devices.precision import fast_dtype
from studio.errors import InputError
from studio_gpt.chat import chat_tokens, turn_ends
from studio_gpt.schema import MOST_CHARACTERS, checked

if TYPE_CHECKING:
    from studio_gpt.cache import Held
    from studio_gpt.load import Found
    from studio_gpt.sampling import Rule
    from studio_gpt.writer import TextModel

STARTER = Path(__file__).parent / "weights" / "starter"
WEIGHTS = ("float16", "loaded", "int8", "int8-dynamic", "int4")  # kinds, as `linear.KINDS` has them; the first is usual
ONE_TURN = "the model answers each message by itself: what was said before is left out"
CHUNK = 256  # tokens of a prompt that one step takes
Logprob = tuple[int, float, tuple[tuple[int, float], ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Writing(studio.State):
    """A text on its way.

    Attributes:
        tokens: those of the prompt, and those written.
        prompt: how many are the prompt's.
        seed: what the draws follow from.
        text, start, read: what is written as text, and how far its tokens are read (see `tokens.Written`).
        ended: why nothing more is written (``end``, ``stop``, ``length``, ``context``), or empty.
        top: how many likeliest tokens to note at each place; 0 notes nothing.
        logprobs: of each token written its number, its log-probability, and the likeliest ones.
        cache, known: keys and values, and of how many tokens they are.
        inputs: as they were given.
        ends: tokens after which nothing more is written; in a chat those that end a turn too.
        rule: what may be written, where a schema was given.
        shares: whether keys and values that other requests have computed may be taken.
    """

    tokens: tuple[int, ...]
    prompt: int
    seed: int
    room: int
    text: str = ""
    start: int = 0
    read: int = 0
    ended: str = ""
    top: int = 0
    logprobs: tuple[Logprob, ...] = ()
    cache: Held = studio.unsaved()
    known: int = studio.unsaved()
    inputs: TextInputs = studio.unsaved()
    ends: frozenset[int] = studio.unsaved()
    rule: Rule | None = studio.unsaved()
    shares: bool = studio.unsaved()

    @property
    def done(self) -> bool:
        """Whether nothing more is written."""
        return bool(self.ended)

    def ahead(self, known: int) -> int:
        """How many tokens the next step computes, where so many are known.

        Where probabilities are told, what was written is computed again one by one, as it was at first: a longer piece
        changes their last digits.
        """
        left = min(len(self.tokens) - known, CHUNK)
        if not self.top:
            return left
        return 1 if known >= self.prompt else min(left, self.prompt - known)


class TextInputs(studio.Inputs):
    """What `studio text` asks for."""

    prompt: str = studio.field(help="the text to go on from", min_length=1, max_length=1_000_000)
    model: str = studio.model_field(
        "a pulled model, a folder in transformers' layout or a GGUF file; empty is Studio's own"
    )
    weights: str = studio.variant_field(
        WEIGHTS[0], help="how weights are held: as loaded, or in fewer bits, faster and less exact", choices=WEIGHTS
    )
    chat: bool = studio.field(
        False, help="put the prompt into the model's chat template: answer it, do not go on from it"
    )
    system: str = studio.field("", help="with `chat`: how the model is to answer", max_length=1_000_000)
    turns: list[str] = studio.field(
        default_factory=list, help="with `chat`: what was said before, by the person and the model in turn"
    )
    max_tokens: int = studio.field(256, ge=1, le=1_000_000, help="tokens to write at most")
    temperature: float = studio.field(0.8, ge=0, le=10, help="how freely to choose; 0 takes the likeliest each time")
    top_k: int = studio.field(0, ge=0, le=1_000_000, help="choose among this many of the likeliest tokens; 0 is all")
    top_p: float = studio.field(0.95, gt=0, le=1, help="choose among the likeliest whose probabilities add up to this")
    min_p: float = studio.field(
        0.0, ge=0, le=1, help="leave out tokens less probable than this share of the likeliest one's probability"
    )
    repetition_penalty: float = studio.field(
        1.0, gt=0, le=10, help="above 1 avoids tokens that the prompt or the text has already"
    )
    presence_penalty: float = studio.field(0.0, ge=-10, le=10, help="subtracted from logits of tokens already written")
    frequency_penalty: float = studio.field(0.0, ge=-10, le=10, help="the same, once for each time a token was written")
    logit_bias: dict[int, float] = studio.field(
        default_factory=dict, help='added to the logits of tokens by number, such as {"42": -100}'
    )
    stop: list[str] = studio.field(default_factory=list, help="end before this text")
    json_schema: str = studio.field(
        "", help="write JSON that fits this JSON Schema, and nothing else", max_length=MOST_CHARACTERS
    )
    literal: bool = studio.field(
        False,
        help="read special tokens that are spelt out in the prompt, as <|im_end|> is, as plain text; chats always do",
    )
    truncate: bool = studio.field(False, help="leave out the beginning of a prompt that is longer than the context")
    lookup: int = studio.field(
        0, ge=0, le=64, help="guess this many tokens ahead from repetitions; faster at times, and the text is the same"
    )

    @field_validator("stop")
    @classmethod
    def _stops_say_something(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text ends nothing: leave it out")
        return value

    @field_validator("json_schema")
    @classmethod
    def _schema_can_be_followed(cls, value: str) -> str:
        if value:
            try:
                checked(value)
            except InputError as error:
                hint = f" ({error.hint})" if error.hint else ""
                raise ValueError(error.message.removeprefix("`json_schema` ") + hint) from None
        return value

    @model_validator(mode="after")
    def _chats_are_asked_for(self) -> TextInputs:
        if (self.system or self.turns) and not self.chat:
            raise ValueError("`system` and `turns` belong to a chat: give `chat` too")
        if len(self.turns) % 2:
            raise ValueError(f"`turns` has {len(self.turns)} texts; the person and the model take turns, so it is even")
        return self


InputsT = TypeVar("InputsT", bound=studio.Inputs)
StateT = TypeVar("StateT", bound=studio.State)


class LanguageModel(studio.Generator["TextModel", InputsT, StateT], Generic[InputsT, StateT]):
    """A generator on a language model. All that are given one model and one kind of weights share it."""

    version: ClassVar[str] = "2"  # 1 had float32 weights
    output: ClassVar[type[studio.Media]] = studio.Text

    def __init__(self, path: Path = STARTER) -> None:
        """Use the model at `path`, a folder in the layout of transformers or a GGUF file, where inputs name none."""
        self.path = path

    def found(self, ref: studio.ModelRef) -> Found:
        """The model on disk. Raises WeightsError."""
        from studio_gpt.load import find

        return find(ref.path or self.path)

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The files that the model is made of, the tokenizer's too. Raises WeightsError if there is no model."""
        found = self.found(ref)
        return [*found.files, *found.others]

    def dtype_for(self, device: str) -> str:
        """float32 on a CPU, whose kernels take it; elsewhere what the device multiplies fastest."""
        return "float32" if device == "cpu" else fast_dtype(device)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> TextModel:
        """Build the decoder and read its tokenizer."""
        from studio_gpt.writer import TextModel

        return TextModel.load(self.found(ref), device, dtype, ref.variant or WEIGHTS[0])


class TextGenerator(LanguageModel[TextInputs, Writing]):
    """Go on from a text, with a language model."""

    name = "text"
    max_batch: ClassVar[int] = 32
    Inputs: ClassVar[type[TextInputs]] = TextInputs

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> Writing:
        """Read the prompt, from what the model knows of its beginning on, and make room for keys and values."""
        return self._start(model, inputs, rng, shares=True)

    def start_isolated(self, model: TextModel, inputs: Any, rng: studio.Rng) -> Writing:
        """The same without the prefix cache: which beginnings are known changes the last bits of logits."""
        return self._start(model, inputs, rng, shares=False)

    def _start(self, model: TextModel, inputs: Any, rng: studio.Rng, *, shares: bool) -> Writing:
        tokens, notices = _prompt(model, inputs)
        notices = (*model.notices, *notices)
        room = min(len(tokens) + inputs.max_tokens, model.config.context)
        cache = model.cache(room)
        ends = model.tokens.ends | (turn_ends(model.tokens) if inputs.chat else frozenset())
        return Writing(
            steps=_chunks(len(tokens)) + room - len(tokens) - 1, notices=notices, tokens=tokens, prompt=len(tokens),
            start=max(0, len(tokens) - 4), read=len(tokens), seed=rng.seed, room=room, cache=cache,
            known=model.prefixes.take(tokens, cache, 0) if shares else 0, inputs=inputs,
            ends=ends, rule=model.rule(inputs.json_schema, ends), shares=shares,
        )  # fmt: skip

    def step(self, model: TextModel, states: Sequence[Writing]) -> list[Writing]:
        """Take every request a chunk of its prompt or a token further."""
        from studio_gpt.writer import step

        return step(model, states)

    def finish(self, model: TextModel, state: Writing) -> studio.Text:
        """What was written."""
        return studio.Text(state.text)

    def delta(self, model: TextModel, state: Writing, start: int) -> str:
        """What was written since and stays: no torn character, and nothing that may become a stop string."""
        from studio_gpt.tokens import held_back

        return state.text[start : len(state.text) - held_back(state.text, state.inputs.stop)]

    def batch_key(self, state: Writing) -> Hashable:
        """Those that write share steps; those that read prompts share them by the size of what is left."""
        left = state.ahead(state.known)
        return "write" if left == 1 else f"read {1 << (left - 1).bit_length()}"

    def facts(self, model: TextModel, inputs: Any) -> dict[str, Any]:
        """The decoder's shape, the kernels of its matrix products, and the attention backends that have served it."""
        shape = model.config
        return {
            "model": {"layers": shape.layers, "width": shape.width, "context": shape.context},
            "products": model.products,
            "attention": sorted(model.attention),
        }


def _chunks(tokens: int) -> int:
    return -(-tokens // CHUNK)


def _prompt(model: TextModel, inputs: TextInputs) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The prompt's tokens, and what is to be told of them. Raises InputError if there are none, or too many."""
    words = model.tokens
    tokens = chat_tokens(words, inputs) if inputs.chat else words.encode(inputs.prompt, literal=inputs.literal)
    context, told = model.config.context, (ONE_TURN,) if words.one_turn and inputs.turns else ()
    if not tokens:
        raise InputError("prompt", "`prompt` has no tokens", hint="say what to go on from")
    unknown = sorted(token for token in inputs.logit_bias if not 0 <= token < model.config.vocab)
    if unknown:
        message = f"`logit_bias` names the token {unknown[0]}; the model has 0 to {model.config.vocab - 1:,}"
        raise InputError("logit_bias", message)
    if len(tokens) < context:
        return tuple(tokens), told
    if not inputs.truncate:
        raise InputError(
            "prompt",
            f"`prompt` has {len(tokens):,} tokens; the context has {context:,}, one of which at least is written",
            hint="shorten it, or leave out its beginning with `--truncate`",
        )
    kept = context - min(inputs.max_tokens, context // 2)
    return tuple(tokens[-kept:]), (*told, f"the first {len(tokens) - kept:,} of {len(tokens):,} tokens were left out")
