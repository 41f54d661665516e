"""The generator `grid`: pictures side by side, each with its label: a contact sheet.

The labels are set in the font that comes with Pillow, which has Latin letters only; others are left out, with a notice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

import studio

if TYPE_CHECKING:
    from collections.abc import Sequence

    import PIL.Image

GAP, LINE, SIZE = 8, 16, 12  # pixels: between pictures, a line of a label, its letters
MOST = 400  # pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet(studio.State):
    """Inputs, and the sheet once it is made."""

    inputs: Any
    made: studio.Image | None = None


class Grid(studio.Generator):
    """Put pictures side by side, each with its label."""

    name = "grid"
    output = studio.Image

    class Inputs(studio.Inputs):
        """Pictures and labels."""

        images: list[studio.Image] = studio.field(help="the pictures", min_length=1, max_length=MOST)
        labels: list[str] = studio.field([], help="a label for each picture, or none at all", max_length=MOST)
        columns: int = studio.field(4, ge=1, le=50, help="pictures in a row, at the most")
        cell: int = studio.field(128, ge=16, le=1024, help="pixels of a picture's longer side")

        @model_validator(mode="after")
        def _even(self) -> Self:
            if self.labels and len(self.labels) != len(self.images):
                raise ValueError(f"there are {len(self.labels)} labels for {len(self.images)} pictures")
            return self

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sheet:
        lost = "".join(dict.fromkeys(c for label in inputs.labels for c in label if not _has(c)))
        notices = (f"the font has no letters for these, which the labels leave out: {lost[:20]}",) if lost else ()
        return Sheet(inputs=inputs, notices=notices)

    def step(self, model: Any, states: Sequence[Sheet]) -> list[Sheet]:
        return [replace(state, position=1, made=studio.Image(draw(state.inputs))) for state in states]

    def finish(self, model: Any, state: Sheet) -> studio.Image:
        assert state.made is not None
        return state.made


def _has(letter: str) -> bool:
    return letter.isspace() or 32 <= ord(letter) < 0x250


def draw(inputs: Any) -> PIL.Image.Image:
    """Draw the sheet: RGB on white, rows from the top, labels below the pictures in at most two lines."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    cell, images = inputs.cell, inputs.images
    columns = min(inputs.columns, len(images))
    font: Any = PIL.ImageFont.load_default(SIZE)
    texts = [_lines("".join(filter(_has, label)), font, cell) for label in inputs.labels] or [[] for _ in images]
    below = max(len(lines) for lines in texts) * LINE
    height = cell + below + GAP
    sheet = PIL.Image.new(
        "RGB", (columns * (cell + GAP) + GAP, math.ceil(len(images) / columns) * height + GAP), "white"
    )
    pen = PIL.ImageDraw.Draw(sheet)
    for index, (image, lines) in enumerate(zip(images, texts, strict=True)):
        x, y = GAP + index % columns * (cell + GAP), GAP + index // columns * height
        small = _fit(image.pil, cell)
        sheet.paste(small, (x + (cell - small.width) // 2, y + (cell - small.height) // 2))
        for number, line in enumerate(lines):
            pen.text((x + cell / 2, y + cell + 2 + number * LINE), line, fill="black", font=font, anchor="ma")
    return sheet


def _fit(picture: PIL.Image.Image, cell: int) -> PIL.Image.Image:
    """The picture as RGB on white, its longer side `cell` pixels."""
    import PIL.Image

    clear = picture.convert("RGBA")
    white = PIL.Image.new("RGBA", clear.size, "white")
    white.alpha_composite(clear)
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return white.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)


def _lines(label: str, font: Any, width: int) -> list[str]:
    """The label in at most two lines of `width` pixels; what does not fit ends in `…`."""
    lines: list[str] = []
    words = label.split()
    while words and len(lines) < 2:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        if words and len(lines) == 1:
            line += "…"
        while font.getlength(line) > width and len(line) > 1:
            line = line.removesuffix("…")[:-1] + "…"
        lines.append(line)
    return lines
