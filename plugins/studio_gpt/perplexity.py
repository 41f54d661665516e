"""The generator `text-perplexity`: the perplexity of a language model on a text.

The text is scored in sliding windows, as in transformers' documentation: a window begins every `stride` tokens, and
only the tokens that no window before it has scored count. The first token of a window has no context and is not scored.
A step scores one window. Importing this loads no torch.

Try it: ``studio generate text-perplexity "The animal was too tired to cross the street." --model smollm2``
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import studio
from studio.errors import InputError
from studio_gpt.state import WEIGHTS
from studio_gpt.text import LanguageModel

if TYPE_CHECKING:
    from studio_gpt.decoding import TextModel

MOST_TOKENS = 4_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Scoring(studio.State):
    """A text that is being scored.

    Attributes:
        tokens: of the text.
        windows: begin, end and first scored token of each.
        nats: negative log-likelihood of the tokens scored so far, summed.
    """

    tokens: tuple[int, ...]
    windows: tuple[tuple[int, int, int], ...]
    nats: float = 0.0


class PerplexityGenerator(LanguageModel[Any, Scoring]):
    """Compute the perplexity of a language model on a text, as JSON (lower is better)."""

    name = "text-perplexity"

    class Inputs(studio.Inputs):
        """A text, a model, and the windows."""

        text: studio.Text = studio.field(help="text to score")
        model: str = studio.model_field("as for `studio text`")
        weights: str = studio.variant_field(WEIGHTS[0], help="as for `studio text`", choices=WEIGHTS)
        window: int = studio.field(0, ge=0, le=1_000_000, help="tokens in a window; 0 is the context length")
        stride: int = studio.field(
            0, ge=0, le=1_000_000, help="tokens from the beginning of a window to the next; 0 is the window size"
        )

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> Scoring:
        """Compute the windows. Raises InputError for fewer than two tokens, too many, or windows that do not fit."""
        tokens = model.tokens.encode(inputs.text.text.removeprefix("\ufeff"))  # a file's byte order mark
        if not 2 <= len(tokens) <= MOST_TOKENS:
            raise InputError("text", f"`text` has {len(tokens):,} tokens; it must have 2 to {MOST_TOKENS:,}")
        context = model.config.context
        window = inputs.window or context
        stride = inputs.stride or window
        if not 2 <= window <= context:
            raise InputError("window", f"`window` is {window:,}; it must be from 2 to the context length, {context:,}")
        if stride > window:
            message = f"`stride` is {stride:,} and `window` {window:,}: tokens between two windows would not be scored"
            raise InputError("stride", message, hint=f"give at most {window:,}")
        windows = tuple(_windows(len(tokens), window, stride))
        return Scoring(steps=len(windows), tokens=tuple(tokens), windows=windows)

    def step(self, model: TextModel, states: Sequence[Scoring]) -> list[Scoring]:
        """Score the next window of each."""
        from studio_gpt.decoding import nats_of

        made = []
        for each in states:
            begin, end, first = each.windows[each.position]
            nats = each.nats + nats_of(model, each.tokens[begin:end], first - begin)
            made.append(replace(each, position=each.position + 1, nats=nats))
        return made

    def finish(self, model: TextModel, state: Scoring) -> studio.Text:
        """JSON of the perplexity (exp of nats per token), nats per token, and the number of scored tokens."""
        scored = sum(end - first for _, end, first in state.windows)
        mean = state.nats / scored
        result = {"perplexity": math.exp(mean), "nats": mean, "scored": scored, "tokens": len(state.tokens)}
        return studio.Text(json.dumps(result) + "\n")


def _windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and first scored token of each window; windows that would score nothing are left out."""
    scored = 1  # the first token has no context
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        first = max(scored, begin + 1)
        if first < end:
            yield begin, end, first
        if end == tokens:
            return
        scored = end
