"""A generator whose pictures are good or bad as asked: discs of a colour, black frames, noise, or one colour always."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw

import studio
from studio.errors import UnknownName

COLOURS = ("red", "green", "blue", "orange", "purple")


class Discs(studio.Generator):
    """Draw a disc."""

    name = "discs"
    output = studio.Image

    class Inputs(studio.Inputs):
        of: str = studio.field("red", help="its colour")
        how: str = studio.field("good", choices=("good", "black", "noise", "one"), help="what is drawn")
        fail: bool = studio.field(False, help="fail at the 42nd")

    def generate(self, model, inputs, rng):
        if inputs.of not in COLOURS:
            raise UnknownName("colour", inputs.of, COLOURS)
        if inputs.fail and rng.seed == 41:
            raise RuntimeError("the 42nd fails")
        if inputs.how == "noise":
            return studio.Image(PIL.Image.frombytes("RGB", (48, 48), rng.python.randbytes(48 * 48 * 3)))
        picture = PIL.Image.new("RGB", (48, 48), "black" if inputs.how == "black" else "white")
        if inputs.how != "black":
            r, colour = rng.python.uniform(11, 20), "red" if inputs.how == "one" else inputs.of
            x, y = (rng.python.uniform(23, 25) for _ in "xy")
            PIL.ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=colour)
        return studio.Image(picture)


class Colours(studio.Generator):
    """Embed pictures by their mean colour."""

    name = "colours"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        images: list[studio.Image] = studio.field(help="the pictures")

    def generate(self, model, inputs, rng):
        means = np.stack([np.asarray(each.pil.convert("RGB")).mean((0, 1)) + 1 for each in inputs.images])
        return studio.Embedding((means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32).ravel())


@studio.hookimpl
def studio_generators():
    return [Discs(), Colours()]


@studio.hookimpl
def studio_embedders():
    return [studio.Embedder("colours", pictures="colours")]
