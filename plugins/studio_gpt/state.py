"""The inputs of the generator `text`, and the state of a text that is being generated. Loads no torch.

Try it: ``python -c "from studio_gpt.state import *; print(TextInputs(prompt='Once').temperature)"``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import field_validator, model_validator

import studio
from studio.errors import InputError
from studio_gpt.schema import MOST_CHARACTERS, checked

if TYPE_CHECKING:
    from studio_gpt.kv_cache import RequestKVCache
    from studio_gpt.sampling import Rule

WEIGHTS = ("float16", "loaded", "int8", "int8-dynamic", "int4")  # of `quantized_linear.KINDS`; the first is the default
CHUNK = 256  # tokens of a prompt in one prefill step
Logprob = tuple[int, float, tuple[tuple[int, float], ...]]


class TextInputs(studio.Inputs):
    """The inputs of `studio text`."""

    prompt: str = studio.field(help="text to continue", min_length=1, max_length=1_000_000)
    model: str = studio.model_field(
        "a pulled model, a folder in transformers' layout or a GGUF file; empty is Studio's starter"
    )
    weights: str = studio.variant_field(
        WEIGHTS[0], help="precision of the weights; fewer bits are faster and less exact", choices=WEIGHTS
    )
    chat: bool = studio.field(
        False, help="answer the prompt, using the model's chat template, instead of continuing it"
    )
    system: str = studio.field("", help="with `chat`: system prompt", max_length=1_000_000)
    turns: list[str] = studio.field(
        default_factory=list, help="with `chat`: earlier messages, by the user and the assistant in turn"
    )
    max_tokens: int = studio.field(256, ge=1, le=1_000_000, help="maximum number of tokens to generate")
    temperature: float = studio.field(0.8, ge=0, le=10, help="sampling temperature; 0 is greedy decoding")
    top_k: int = studio.field(0, ge=0, le=1_000_000, help="sample from the k most likely tokens; 0 is all")
    top_p: float = studio.field(
        0.95, gt=0, le=1, help="sample from the most likely tokens whose probabilities sum to this (nucleus sampling)"
    )
    min_p: float = studio.field(
        0.0, ge=0, le=1, help="drop tokens less probable than this fraction of the most likely token's probability"
    )
    repetition_penalty: float = studio.field(
        1.0, gt=0, le=10, help="above 1 discourages tokens that are in the prompt or the output"
    )
    presence_penalty: float = studio.field(
        0.0, ge=-10, le=10, help="subtracted once from the logit of every token already generated"
    )
    frequency_penalty: float = studio.field(
        0.0, ge=-10, le=10, help="subtracted from the logit of a generated token once per occurrence"
    )
    logit_bias: dict[int, float] = studio.field(
        default_factory=dict, help='added to the logits of tokens by id, such as {"42": -100}'
    )
    stop: list[str] = studio.field(default_factory=list, help="stop before this string")
    json_schema: str = studio.field(
        "", help="constrain the output to JSON that is valid for this JSON Schema", max_length=MOST_CHARACTERS
    )
    literal: bool = studio.field(
        False,
        help="treat special tokens spelt out in the prompt, such as <|im_end|>, as plain text; chats always do",
    )
    truncate: bool = studio.field(False, help="drop the beginning of a prompt that is longer than the context")
    lookup: int = studio.field(
        0, ge=0, le=64,
        help="draft this many tokens by prompt lookup (speculative decoding); the output is the same, at times faster",
    )  # fmt: skip

    @field_validator("stop")
    @classmethod
    def _stops_are_not_empty(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("a stop string is empty: remove it")
        return value

    @field_validator("json_schema")
    @classmethod
    def _schema_is_supported(cls, value: str) -> str:
        if value:
            try:
                checked(value)
            except InputError as error:
                hint = f" ({error.hint})" if error.hint else ""
                raise ValueError(error.message.removeprefix("`json_schema` ") + hint) from None
        return value

    @model_validator(mode="after")
    def _chat_inputs_need_chat(self) -> TextInputs:
        if (self.system or self.turns) and not self.chat:
            raise ValueError("`system` and `turns` need `chat`: set it too")
        if len(self.turns) % 2:
            raise ValueError(
                f"`turns` has {len(self.turns)} messages; it must be an even number, user and assistant in turn"
            )
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class TextState(studio.State):
    """A text that is being generated.

    Attributes:
        tokens: prompt tokens, then generated tokens.
        prompt: number of prompt tokens.
        seed: seed of the sampling.
        room: capacity of the KV cache in tokens.
        text, start, read: the generated text, and how far tokens are detokenized (see `tokens.DetokenizedText`).
        ended: why generation stopped (``end``, ``stop``, ``length``, ``context``), or empty.
        top: number of most likely tokens to record at each position; 0 records nothing.
        logprobs: for each generated token its id, its log-probability, and the most likely tokens.
        cache, num_computed: the KV cache, and the number of tokens whose keys and values it holds.
        inputs: the request's inputs.
        ends: tokens that stop generation; in a chat, end-of-turn tokens too.
        rule: which tokens are allowed, with a JSON Schema.
        use_prefix_cache: whether keys and values computed for other requests may be reused.
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
    cache: RequestKVCache = studio.unsaved()
    num_computed: int = studio.unsaved()
    inputs: TextInputs = studio.unsaved()
    ends: frozenset[int] = studio.unsaved()
    rule: Rule | None = studio.unsaved()
    use_prefix_cache: bool = studio.unsaved()

    @property
    def done(self) -> bool:
        """Whether generation has stopped."""
        return bool(self.ended)

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers of tokens, and why generation stopped."""
        counts = {"prompt": self.prompt, "completion": len(self.tokens) - self.prompt}
        return {"tokens": counts, "ended": self.ended}

    def next_tokens(self, num_computed: int) -> int:
        """The number of tokens that the next step computes, after the first `num_computed`.

        With `top`, generated tokens are recomputed one by one, as at first: a longer segment changes the last digits of
        their log-probabilities.
        """
        left = min(len(self.tokens) - num_computed, CHUNK)
        if not self.top:
            return left
        return 1 if num_computed >= self.prompt else min(left, self.prompt - num_computed)
