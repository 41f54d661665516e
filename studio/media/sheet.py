"""A contact sheet: pictures side by side on white, each with its label below.

Labels use Pillow's built-in font, which has only Latin letters; `missing_letters` lists what it lacks.

Try it: ``contact_sheet([image, other], ["one", "two"]).save("sheet.png")``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.media import pictures
from studio.media.image import Image

if TYPE_CHECKING:
    import PIL.Image

GAP, LINE, SIZE = 8, 16, 12  # pixels: between pictures, line height of labels, font size


def contact_sheet(images: Sequence[Image], labels: Sequence[str] = (), *, columns: int = 4, cell: int = 128) -> Image:
    """Draw the sheet: RGB on white, rows from the top, labels below the pictures in at most two lines.

    `labels` has one label per picture, or is empty; `cell` is a picture's longer side in pixels.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    columns = min(columns, len(images))
    font: Any = PIL.ImageFont.load_default(SIZE)
    texts = [_lines("".join(filter(_has, label)), font, cell) for label in labels] or [[] for _ in images]
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
    return Image(sheet)


def missing_letters(labels: Sequence[str]) -> str:
    """The characters of the labels that the font lacks, each once; a sheet omits them."""
    return "".join(dict.fromkeys(c for label in labels for c in label if not _has(c)))


def _has(letter: str) -> bool:
    return letter.isspace() or 32 <= ord(letter) < 0x250


def _fit(picture: PIL.Image.Image, cell: int) -> PIL.Image.Image:
    """The picture as RGB on white, its longer side `cell` pixels."""
    import PIL.Image

    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return pictures.on_white(picture).resize(size, PIL.Image.Resampling.LANCZOS)


def _lines(label: str, font: Any, width: int) -> list[str]:
    """The label in at most two lines of `width` pixels, truncated with `…`."""
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
