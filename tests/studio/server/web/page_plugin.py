"""A generator for the page's tests, as a third party writes it: it paints step by step, and has inputs of all kinds."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import PIL.Image

import studio

SIDE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Painting(studio.State):
    """How much is painted is its position."""

    colour: tuple[int, ...] = (0, 0, 0)


class Painter(studio.Generator):
    """Paint one colour, a little more at each step."""

    name = "painter"
    output = studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="what to paint", max_length=2000)
        strokes: int = studio.field(5, ge=1, le=500, help="how many strokes")
        endless: bool = studio.field(False, help="never be done")
        wet: float | None = studio.field(None, ge=0, le=1, help="how wet the paint is")
        brush: str = studio.field("round", choices=("round", "flat"), help="the brush")
        notes: list[str] = studio.field(default_factory=list, help="what to keep in mind")
        canvas: studio.Image | None = studio.field(None, help="where to paint")

    def start(self, model, inputs, rng):
        return Painting(steps=100_000 if inputs.endless else inputs.strokes, colour=tuple(rng.python.randbytes(3)))

    def step(self, model, states):
        threading.Event().wait(0.02)  # a step takes a moment, so that a click falls into one
        return [replace(state, position=state.position + 1) for state in states]

    def preview(self, model, state):
        return studio.Image(PIL.Image.new("RGB", (SIDE, SIDE), (*state.colour[:2], state.position % 256)))

    def finish(self, model, state):
        return studio.Image(PIL.Image.new("RGB", (SIDE, SIDE), state.colour))


@studio.hookimpl
def studio_generators():
    return [Painter()]
