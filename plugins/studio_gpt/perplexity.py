"""The generator `text-perplexity`: how well a language model foretells a text that it is given.

The text is read in windows, each by itself and from its own start, as transformers' documentation does it: windows
begin every `stride` tokens, and of each only what no window before it has scored counts. A token with nothing before it
in its window is not scored. A step reads one window. Importing this loads no torch.

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
from studio_gpt.text import WEIGHTS, LanguageModel

if TYPE_CHECKING:
    from studio_gpt.writer import TextModel

MOST_TOKENS = 4_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Scoring(studio.State):
    """A text that is being read: its tokens, the windows, and what is summed up of those that are read.

    Attributes:
        tokens: of the text.
        windows: of each where it begins and ends, and the first token that it scores.
        nats: minus the natural logarithm of the scored tokens' probabilities, summed.
    """

    tokens: tuple[int, ...]
    windows: tuple[tuple[int, int, int], ...]
    nats: float = 0.0


class PerplexityGenerator(LanguageModel[Any, Scoring]):
    """Tell as JSON how well a language model predicts a text (perplexity: lower is better)."""

    name = "text-perplexity"

    class Inputs(studio.Inputs):
        """A text, a model, and how it is read."""

        text: studio.Text = studio.field(help="the text to foretell")
        model: str = studio.model_field("as for `studio text`")
        weights: str = studio.variant_field(WEIGHTS[0], help="as for `studio text`", choices=WEIGHTS)
        window: int = studio.field(0, ge=0, le=1_000_000, help="tokens that are read together; 0 is the whole context")
        stride: int = studio.field(
            0, ge=0, le=1_000_000, help="tokens from one window's beginning to the next's; 0 is a window"
        )

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> Scoring:
        """Lay out the windows. Raises InputError for fewer than two tokens, too many, or windows that do not fit."""
        tokens = model.tokens.encode(inputs.text.text.removeprefix("\ufeff"))  # a file's byte order mark
        if not 2 <= len(tokens) <= MOST_TOKENS:
            raise InputError("text", f"`text` has {len(tokens):,} tokens; from 2 to {MOST_TOKENS:,} can be scored")
        context = model.config.context
        window = inputs.window or context
        stride = inputs.stride or window
        if not 2 <= window <= context:
            raise InputError("window", f"`window` is {window:,}; the model reads 2 to {context:,} tokens together")
        if stride > window:
            message = f"`stride` is {stride:,} and the window {window:,}: what is between two windows would not be read"
            raise InputError("stride", message, hint=f"give at most {window:,}")
        windows = tuple(_windows(len(tokens), window, stride))
        return Scoring(steps=len(windows), tokens=tuple(tokens), windows=windows)

    def step(self, model: TextModel, states: Sequence[Scoring]) -> list[Scoring]:
        """Read the next window of each."""
        from studio_gpt.writer import nats_of

        made = []
        for each in states:
            begin, end, first = each.windows[each.position]
            nats = each.nats + nats_of(model, each.tokens[begin:end], first - begin)
            made.append(replace(each, position=each.position + 1, nats=nats))
        return made

    def finish(self, model: TextModel, state: Scoring) -> studio.Text:
        """Perplexity (the exponential of nats a token), nats a token, and how many tokens were scored."""
        scored = sum(end - first for _, end, first in state.windows)
        mean = state.nats / scored
        told = {"perplexity": math.exp(mean), "nats": mean, "scored": scored, "tokens": len(state.tokens)}
        return studio.Text(json.dumps(told) + "\n")


def _windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Where each begins and ends, and the first token that it scores; one that would score nothing is left out."""
    scored = 1  # of the first token nothing foretells
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        first = max(scored, begin + 1)
        if first < end:
            yield begin, end, first
        if end == tokens:
            return
        scored = end
