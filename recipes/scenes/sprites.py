"""The pictures of objects with alpha (sprites), and recoloured versions of them.

Try it: `tint(sprites["cat"], "blue")`
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image

from recipes.data.emoji import code
from recipes.scenes.grounds import RGB

SIDE = 128
"""The longest side of a sprite, in pixels."""


def load(pictures: Path, words: Path, labels: Iterable[str]) -> dict[str, PIL.Image.Image]:
    """RGBA pictures by label, cropped to their content and resized to `SIDE`.

    Args:
        pictures, words: the unpacked emoji packages, as for `recipes.data.emoji.read`.

    Raises:
        KeyError: a label has no picture.
    """
    files = {code(path.stem): path for path in (pictures / "assets").glob("*.webp")}
    entries = json.loads((words / "en" / "data.json").read_text("utf-8"))
    codes = {entry["label"].replace("’", "'"): code(entry["hexcode"]) for entry in entries}
    made = {}
    for label in labels:
        with PIL.Image.open(files[codes[label]]) as picture:
            made[label] = cut(picture.convert("RGBA"))
    return made


def cut(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The content of an RGBA picture, its longest side `SIDE`."""
    box = picture.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    if box is None:
        raise ValueError("the picture is empty: nothing in it is painted")
    part = picture.crop(box)
    scale = SIDE / max(part.size)
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    return part.resize(size, PIL.Image.Resampling.LANCZOS)


def tint(sprite: PIL.Image.Image, colour: str) -> PIL.Image.Image:
    """The sprite in another colour: light and shade, and the greys of a colourful sprite, are kept."""
    rgba = np.asarray(sprite).astype(np.float32)
    rgb, painted = rgba[..., :3], rgba[..., 3] > 24
    grey = rgb @ np.array([0.299, 0.587, 0.114], np.float32)  # (H, W)
    low, middle, high = np.percentile(grey[painted], (2, 50, 98))
    # Light and shade as -1 to 1 about the median, so that any sprite has the colour itself at its middle.
    shade = np.where(grey < middle, (grey - middle) / max(middle - low, 24), (grey - middle) / max(high - middle, 24))
    shade = shade.clip(-1, 1)[..., None]
    target = np.array(RGB[colour], np.float32)
    light = target + (255 - target) * (0.1 if colour == "black" else 0.55)
    dark = target * (0.72 if colour == "white" else 0.35)
    made = target + np.where(shade > 0, shade * (light - target), -shade * (dark - target))
    strong = ((rgb.max(2) - rgb.min(2) - 20) / 50).clip(0, 1)  # 1 where a pixel has a colour of its own
    if strong[painted].mean() > 0.65:  # eyes, wheels and windows stay as they are
        made = strong[..., None] * made + (1 - strong[..., None]) * rgb
    rgba[..., :3] = made
    return PIL.Image.fromarray(rgba.clip(0, 255).astype(np.uint8))
