"""Looking into a text: `text-explain` notes how likely each token was, `text-attention` draws where a head looks.

Both are generators on the models of `text`, and share them. Importing this loads no torch.

Try it: ``studio text --explain --attention 0.0 --model model.gguf "The animal was too tired"``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import studio
from studio.errors import InputError
from studio_gpt.text import WEIGHTS, LanguageModel, TextGenerator, TextInputs, Writing

if TYPE_CHECKING:
    from torch import Tensor

    from studio_gpt.writer import TextModel

MOST_DRAWN = 128  # tokens of a prompt whose attention is drawn
_CELL, _LABEL = 18, 96  # pixels


class ExplainGenerator(TextGenerator):
    """Go on from a text, and tell as JSON how likely each token was, and which others were.

    It neither shares beginnings of prompts nor guesses ahead: the last digits of its numbers would depend on what was
    asked before, and on whether it was interrupted.
    """

    name = "text-explain"

    class Inputs(TextInputs):
        """What `text` asks for, and how many alternatives to tell."""

        top: int = studio.field(5, ge=1, le=100, help="likeliest tokens to tell at each step")

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> Writing:
        """As `text` does, but nothing is taken from the prefix cache: which of it is known changes the last digits."""
        return self.start_isolated(model, inputs, rng)

    def _start(self, model: TextModel, inputs: Any, rng: studio.Rng, *, shares: bool) -> Writing:
        return replace(super()._start(model, inputs, rng, shares=shares), top=inputs.top)

    def delta(self, model: TextModel, state: Writing, start: int) -> str:
        """Nothing: it is read when it is whole."""
        return ""

    def finish(self, model: TextModel, state: Writing) -> studio.Text:
        """Tokens with numbers, natural log-probabilities by the model itself, and alternatives."""

        def told(token: int, **more: Any) -> dict[str, Any]:
            return {"id": token, "token": model.tokens.spell(token), **more}

        written = [
            told(token, logprob=logprob, top=[told(each, logprob=value) for each, value in top])
            for token, logprob, top in state.logprobs
        ]
        prompt = [told(token) for token in state.tokens[: state.prompt]]
        whole = {"prompt": prompt, "written": written, "text": state.text, "ended": state.ended}
        return studio.Text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True, eq=False)
class Looking(studio.State):
    """A prompt's tokens and, after the only step, how much each looks at each: (T, T), rows sum to 1."""

    tokens: tuple[int, ...]
    layer: int
    head: int
    weights: Tensor | None = None


class AttentionGenerator(LanguageModel[Any, Looking]):
    """Draw where each word of a text looks, for one head of one layer of a language model."""

    name = "text-attention"
    output = studio.Image

    class Inputs(studio.Inputs):
        """A text, a model, a layer and a head."""

        prompt: str = studio.field(help="the text to look at", min_length=1, max_length=10_000)
        model: str = studio.model_field("as for `studio text`")
        weights: str = studio.variant_field(WEIGHTS[0], help="as for `studio text`", choices=WEIGHTS)
        layer: int = studio.field(0, ge=0, le=1023, help="counted from 0")
        head: int = studio.field(0, ge=0, le=4095, help="counted from 0")

    def start(self, model: TextModel, inputs: Any, rng: studio.Rng) -> Looking:
        """Read the text. Raises InputError for a layer or head that is not there, and a text of too many tokens."""
        tokens = model.tokens.encode(inputs.prompt)
        for name, count in (("layer", model.config.layers), ("head", model.config.heads)):
            if getattr(inputs, name) >= count:
                message = f"`{name}` is {getattr(inputs, name)}; the model has {count}, counted from 0"
                raise InputError(name, message)
        most = min(MOST_DRAWN, model.config.context)
        if not 1 <= len(tokens) <= most:
            raise InputError("prompt", f"`prompt` has {len(tokens)} tokens; from 1 to {most} can be drawn")
        return Looking(tokens=tuple(tokens), layer=inputs.layer, head=inputs.head)

    def step(self, model: TextModel, states: Sequence[Looking]) -> list[Looking]:
        """Run the decoder over each text and keep what the head saw."""
        from studio_gpt.writer import attention_of

        return [
            replace(each, position=1, weights=attention_of(model, each.tokens, each.layer, each.head))
            for each in states
        ]

    def finish(self, model: TextModel, state: Looking) -> studio.Image:
        """The picture: a row for each token, darker where it looks."""
        assert state.weights is not None
        return studio.Image(draw([model.tokens.spell(token) for token in state.tokens], state.weights.tolist()))


def draw(words: Sequence[str], weights: Sequence[Sequence[float]]) -> Any:
    """A Pillow picture of weights (T, T) with their words at the left and, turned, at the top."""
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
