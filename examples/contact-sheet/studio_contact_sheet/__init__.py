"""A plugin without a model: pictures on one sheet. It shows lists of media as inputs, and the simple form."""

from __future__ import annotations

from typing import Any

import studio

studio_api = 1


class ContactSheet(studio.Generator):
    """Put pictures on one sheet, in rows."""

    name = "contact-sheet"
    output = studio.Image

    class Inputs(studio.Inputs):
        images: list[studio.Image] = studio.field(help="the pictures, in order", min_length=1, max_length=1000)
        columns: int = studio.field(4, ge=1, le=50, help="pictures in a row")
        side: int = studio.field(128, ge=8, le=1024, help="pixels that each may be wide and high")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Image:
        from PIL import Image, ImageOps

        side, columns = inputs.side, min(inputs.columns, len(inputs.images))
        rows = -(-len(inputs.images) // columns)
        sheet = Image.new("RGB", (columns * side, rows * side), "white")
        for i, each in enumerate(inputs.images):
            small = ImageOps.contain(each.pil.convert("RGB"), (side, side))
            left, top = i % columns * side, i // columns * side
            sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        return studio.Image(sheet)


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [ContactSheet()]
