"""Interpretability: `text-explain` gives the log-probability of each token, `text-attention` draws attention weights.

Both generators use the models of `text`, and share them with it. Importing this loads no torch.

Try it: ``studio text --explain --attention 0.0 --model model.gguf "The animal was too tired"``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import studio
from studio.errors import InputError
from studio_gpt.state import WEIGHTS, TextInputs, TextState
from studio_gpt.text import LanguageModel, TextGenerator

if TYPE_CHECKING:
    from torch import Tensor

    from studio_gpt.decoding import TextModel

MOST_DRAWN = 128  # prompt tokens
_CELL, _LABEL = 18, 96  # pixels


class ExplainGenerator(TextGenerator):
    """Generate text, and report the log-probability of each token and of the likeliest alternatives as JSON.

    It uses neither the prefix cache nor speculative decoding: the last digits of its numbers would depend on earlier
    requests, and on whether it was interrupted.
    """

    name = "text-explain"

    class Inputs(TextInputs):
        """The inputs of `text`, and the number of alternatives."""

        top: int = studio.field(5, ge=1, le=100, help="most likely tokens to report at each step")

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> TextState:
        """As `text`, without the prefix cache, whose contents change the last digits."""
        return self.start_isolated(model, inputs, rng)

    def _start(self, model: TextModel, inputs: Any, rng: studio.Rng, *, use_prefix_cache: bool) -> TextState:
        return replace(super()._start(model, inputs, rng, use_prefix_cache=use_prefix_cache), top=inputs.top)

    def delta(self, model: TextModel, state: TextState, start: int) -> str:
        """Nothing: the JSON is complete only at the end."""
        return ""

    def finish(self, model: TextModel, state: TextState) -> studio.Text:
        """JSON of the tokens with their ids, natural log-probabilities (before penalties and temperature), and
        alternatives.
        """

        def entry(token: int, **more: Any) -> dict[str, Any]:
            return {"id": token, "token": model.tokens.spell(token), **more}

        written = [
            entry(token, logprob=logprob, top=[entry(each, logprob=value) for each, value in top])
            for token, logprob, top in state.logprobs
        ]
        prompt = [entry(token) for token in state.tokens[: state.prompt]]
        whole = {"prompt": prompt, "written": written, "text": state.text, "ended": state.ended}
        return studio.Text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionState(studio.State):
    """A prompt's tokens and, after the only step, the attention weights (T, T), whose rows sum to 1."""

    tokens: tuple[int, ...]
    layer: int
    head: int
    weights: Tensor | None = None


class AttentionGenerator(LanguageModel[Any, AttentionState]):
    """Draw the attention weights of one head of one layer of a language model over a text."""

    name = "text-attention"
    output = studio.Image
    generative = False

    class Inputs(studio.Inputs):
        """A text, a model, a layer and a head."""

        prompt: str = studio.field(help="text to analyse", min_length=1, max_length=10_000)
        model: str = studio.model_field("as for `studio text`")
        weights: str = studio.variant_field(WEIGHTS[0], help="as for `studio text`", choices=WEIGHTS)
        layer: int = studio.field(0, ge=0, le=1023, help="layer index, from 0")
        head: int = studio.field(0, ge=0, le=4095, help="head index, from 0")

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> AttentionState:
        """Tokenize the text. Raises InputError for a layer or head out of range, and for a text that is too long."""
        tokens = model.tokens.encode(inputs.prompt)
        for name, count in (("layer", model.config.layers), ("head", model.config.heads)):
            if getattr(inputs, name) >= count:
                message = f"`{name}` is {getattr(inputs, name)}; the model has 0 to {count - 1}"
                raise InputError(name, message)
        most = min(MOST_DRAWN, model.config.context)
        if not 1 <= len(tokens) <= most:
            raise InputError("prompt", f"`prompt` has {len(tokens)} tokens; from 1 to {most} can be drawn")
        return AttentionState(tokens=tuple(tokens), layer=inputs.layer, head=inputs.head)

    def step(self, model: TextModel, states: Sequence[AttentionState]) -> list[AttentionState]:
        """Run the decoder over each text and keep the attention weights of the head."""
        from studio_gpt.decoding import attention_of

        return [
            replace(each, position=1, weights=attention_of(model, each.tokens, each.layer, each.head))
            for each in states
        ]

    def finish(self, model: TextModel, state: AttentionState) -> studio.Image:
        """The attention map: a row for each token, darker where its weight is higher."""
        assert state.weights is not None
        return studio.Image(draw([model.tokens.spell(token) for token in state.tokens], state.weights.tolist()))


def draw(words: Sequence[str], weights: Sequence[Sequence[float]]) -> Any:
    """A Pillow picture of weights (T, T), with the tokens at the left and, rotated, at the top."""
    from PIL import Image, ImageDraw, ImageFont

    font, size = ImageFont.load_default(11), len(words) * _CELL
    side = Image.new("L", (_LABEL, size), 255)
    for row, word in enumerate(words):
        shown = repr(word)[1:-1] if not word.isprintable() else word
        ImageDraw.Draw(side).text((_LABEL - 4, row * _CELL + _CELL // 2), shown[:14], fill=0, font=font, anchor="rm")
    picture = Image.new("RGB", (_LABEL + size, _LABEL + size), "white")
    picture.paste(side, (0, _LABEL))
    picture.paste(side.transpose(Image.Transpose.ROTATE_270), (_LABEL, 0))
    pen = ImageDraw.Draw(picture)
    for row, values in enumerate(weights):
        for column, value in enumerate(values[: row + 1]):
            x, y, shade = _LABEL + column * _CELL, _LABEL + row * _CELL, round(255 * (1 - min(1.0, max(0.0, value))))
            pen.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), fill=(shade, shade, 255))
    return picture
