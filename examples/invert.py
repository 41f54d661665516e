"""The smallest plugin: one file, one generator, one step."""

from PIL import Image, ImageChops

import studio


class Invert(studio.Generator):
    """Turn a picture into its negative."""

    name = "invert"
    output = studio.Image

    class Inputs(studio.Inputs):
        image: studio.Image = studio.field(help="the picture to invert")
        strength: float = studio.field(1.0, ge=0, le=1, help="0 keeps the picture, 1 inverts it fully")

    def generate(self, model, inputs, rng):
        picture = inputs.image.pil.convert("RGB")
        return studio.Image(Image.blend(picture, ImageChops.invert(picture), inputs.strength))


@studio.hookimpl
def studio_generators():
    return [Invert()]
