"""The generator `text`: text generation with any language model that `load.py` reads.

A step prefills a chunk of a prompt, or decodes one token (several, where draft tokens are accepted). Decode steps batch
requests of any lengths, prompts and sampling settings (continuous batching). A checkpoint of a request has its tokens;
the KV cache is recomputed. Importing this loads no torch; `load` does.

Try it: ``studio text --model model.gguf "Once upon a time"``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import studio
from studio.devices.precision import fast_dtype
from studio.errors import InputError
from studio_gpt.chat import chat_tokens, turn_ends
from studio_gpt.state import CHUNK, WEIGHTS, TextInputs, TextState

if TYPE_CHECKING:
    from studio_gpt.decoding import TextModel
    from studio_gpt.load import ModelFiles

STARTER = Path(__file__).parent / "weights" / "starter"
ONE_TURN = "the model was trained on single messages: earlier turns are ignored"

InputsT = TypeVar("InputsT", bound=studio.Inputs)
StateT = TypeVar("StateT", bound=studio.State)


class LanguageModel(studio.Generator["TextModel", InputsT, StateT], Generic[InputsT, StateT]):
    """Base class of generators that run a language model. Requests for the same model and weights share it."""

    version: ClassVar[str] = "2"  # 1 had float32 weights
    output: ClassVar[type[studio.Media]] = studio.Text

    def __init__(self, path: Path = STARTER) -> None:
        """`path` is the default model: a folder in the layout of transformers, or a GGUF file."""
        self.path = path

    def found(self, ref: studio.ModelRef) -> ModelFiles:
        """The model on disk. Raises WeightsError."""
        from studio_gpt.load import find

        return find(ref.path or self.path)

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The files of the model and its tokenizer. Raises WeightsError if there is no model."""
        found = self.found(ref)
        return [*found.files, *found.others]

    def dtype_for(self, device: str) -> str:
        """float32 on a CPU, as its kernels expect; the fastest dtype of any other device."""
        return "float32" if device == "cpu" else fast_dtype(device)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> TextModel:
        """Build the decoder and read its tokenizer."""
        from studio_gpt.decoding import TextModel

        return TextModel.load(self.found(ref), device, dtype, ref.variant or WEIGHTS[0])


class TextGenerator(LanguageModel[TextInputs, TextState]):
    """Generate text from a prompt with a language model."""

    name = "text"
    max_batch: ClassVar[int] = 32
    Inputs: ClassVar[type[TextInputs]] = TextInputs

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> TextState:
        """Tokenize the prompt, allocate a KV cache, and copy known beginnings from the prefix cache."""
        return self._start(model, inputs, rng, use_prefix_cache=True)

    def start_isolated(self, model: TextModel, inputs: Any, rng: studio.Rng) -> TextState:
        """The same without the prefix cache, whose contents change the last bits of logits."""
        return self._start(model, inputs, rng, use_prefix_cache=False)

    def _start(self, model: TextModel, inputs: Any, rng: studio.Rng, *, use_prefix_cache: bool) -> TextState:
        tokens, notices = _prompt(model, inputs)
        notices = (*model.notices, *notices)
        room = min(len(tokens) + inputs.max_tokens, model.config.context)
        cache = model.cache(room)
        ends = model.tokens.ends | (turn_ends(model.tokens) if inputs.chat else frozenset())
        return TextState(
            steps=_chunks(len(tokens)) + room - len(tokens) - 1, notices=notices, tokens=tokens, prompt=len(tokens),
            start=max(0, len(tokens) - 4), read=len(tokens), seed=rng.seed, room=room, cache=cache,
            num_computed=model.prefix_cache.load(tokens, cache, 0) if use_prefix_cache else 0, inputs=inputs,
            ends=ends, rule=model.rule(inputs.json_schema, ends), use_prefix_cache=use_prefix_cache,
        )  # fmt: skip

    def step(self, model: TextModel, states: Sequence[TextState]) -> list[TextState]:
        """Prefill the next chunk, or decode the next token, of every request."""
        from studio_gpt.decoding import step

        return step(model, states)

    def finish(self, model: TextModel, state: TextState) -> studio.Text:
        """The generated text."""
        return studio.Text(state.text)

    def delta(self, model: TextModel, state: TextState, start: int) -> str:
        """The new text from `start` on, without incomplete characters or a possible beginning of a stop string."""
        from studio_gpt.tokens import held_back

        return state.text[start : len(state.text) - held_back(state.text, state.inputs.stop)]

    def batch_key(self, state: TextState) -> Hashable:
        """Requests that decode are batched together; requests that prefill are batched by chunk size."""
        left = state.next_tokens(state.num_computed)
        return "decode" if left == 1 else f"prefill {1 << (left - 1).bit_length()}"

    def facts(self, model: TextModel, inputs: Any) -> dict[str, Any]:
        """The decoder's shape, the kernels of its matrix products, and the attention backends that it has used."""
        shape = model.config
        return {
            "model": {"layers": shape.layers, "width": shape.width, "context": shape.context},
            "products": model.products,
            "attention": sorted(model.attention),
        }


def _chunks(tokens: int) -> int:
    """Prefill steps of a prompt."""
    return -(-tokens // CHUNK)


def _prompt(model: TextModel, inputs: TextInputs) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The prompt's tokens, and notices. Raises InputError if there are none, or too many."""
    tokenizer = model.tokens
    tokens = chat_tokens(tokenizer, inputs) if inputs.chat else tokenizer.encode(inputs.prompt, literal=inputs.literal)
    context, notices = model.config.context, (ONE_TURN,) if tokenizer.one_turn and inputs.turns else ()
    if not tokens:
        raise InputError("prompt", "`prompt` has no tokens", hint="give a prompt")
    unknown = sorted(token for token in inputs.logit_bias if not 0 <= token < model.config.vocab)
    if unknown:
        message = f"`logit_bias` has the token id {unknown[0]}; ids of this model are 0 to {model.config.vocab - 1:,}"
        raise InputError("logit_bias", message)
    if len(tokens) < context:
        return tuple(tokens), notices
    if not inputs.truncate:
        raise InputError(
            "prompt",
            f"`prompt` has {len(tokens):,} tokens; the context of {context:,} leaves no room for a generated token",
            hint="shorten it, or drop its beginning with `--truncate`",
        )
    room = context - min(inputs.max_tokens, context // 2)
    dropped = len(tokens) - room
    return tuple(tokens[dropped:]), (*notices, f"the first {dropped:,} of {len(tokens):,} prompt tokens were dropped")
