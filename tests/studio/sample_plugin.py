"""A plugin for the tests: small real generators without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import PIL.Image
import PIL.ImageOps

import studio


@dataclass(frozen=True, kw_only=True, eq=False)
class Count(studio.State):
    value: int


class Counter(studio.Generator):
    """Count up from a random number, one a step."""

    name = "counter"
    output = studio.Text

    class Inputs(studio.Inputs):
        count: int = studio.field(5, ge=1, le=1000, help="how many steps")
        cut: bool = studio.field(False, help="tell a notice")

    def start(self, model, inputs, rng):
        notices = ("the count was cut",) if inputs.cut else ()
        return Count(steps=inputs.count, value=rng.python.randrange(10**6), notices=notices)

    def step(self, model, states):
        return [replace(state, position=state.position + 1, value=state.value + 1) for state in states]

    def finish(self, model, state):
        return studio.Text(str(state.value))

    def preview(self, model, state):
        return studio.Text(f"so far {state.value}")

    def batch_key(self, state):
        return "any"

    def facts(self, model, inputs):
        return {"sampler": "plus-one"}


class Noise(studio.Generator):
    """Random pixels."""

    name = "noise"
    output = studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="what to ignore", min_length=1)
        side: int = studio.field(16, ge=8, le=256, multiple_of=8, help="width and height")

    def generate(self, model, inputs, rng):
        pixels = rng.python.randbytes(inputs.side * inputs.side * 3)
        return studio.Image(PIL.Image.frombytes("RGB", (inputs.side, inputs.side), pixels))


class Invert(studio.Generator):
    """Turn a picture into its negative."""

    name = "invert"
    output = studio.Image

    class Inputs(studio.Inputs):
        image: studio.Image = studio.field(help="the picture")

    def generate(self, model, inputs, rng):
        return studio.Image(PIL.ImageOps.invert(inputs.image.pil))


@studio.hookimpl
def studio_generators():
    return [Counter(), Noise(), Invert()]
