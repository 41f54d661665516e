"""A generator whose pictures are good or bad as asked: discs of a colour, black frames, noise, or one colour always."""

from __future__ import annotations

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


@studio.hookimpl
def studio_generators():
    return [Discs()]
