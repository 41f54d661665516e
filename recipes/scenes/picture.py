"""Draw a scene: the layout of its objects, and the picture with its ground truth.

Try it: `draw(scene, sprites, 128, np.random.default_rng(0)).pixels`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import PIL.Image

from recipes.scenes import grounds, things
from recipes.scenes.scene import Part, Scene
from recipes.scenes.sprites import tint

AIR = {thing.label for thing in things.read() if thing.air}
_ROWS = {1: ((1,),), 2: ((2,), (2,), (1, 1)), 3: ((3,), (1, 2), (2, 1)), 4: ((2, 2), (2, 2), (4,)), 5: ((2, 3), (3, 2))}
"""The number of objects in each row, from above, by the total number."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the picture's side."""


@dataclass(frozen=True)
class Placed:
    """An object in the picture: its part of the scene, and its box as fractions of the picture's side."""

    part: Part
    box: Box


@dataclass(frozen=True)
class Picture:
    """A scene's pixels, uint8 (size, size, 3), and its objects with their boxes."""

    pixels: np.ndarray
    placed: tuple[Placed, ...]


def _cells(area: Box, count: int, rng: np.random.Generator) -> list[Box]:
    """Boxes for `count` objects in the area, without overlap, of about the same size."""
    options = _ROWS[count]
    rows = options[rng.integers(len(options))]
    x0, y0, x1, y1 = area
    side = min((x1 - x0) / max(rows), (y1 - y0) / len(rows)) * rng.uniform(0.8, 0.92)
    made = []
    for row, several in enumerate(rows):
        cy = y0 + (y1 - y0) * (row + 0.5) / len(rows)
        for column in range(several):
            cx = x0 + (x1 - x0) * (column + 0.5) / several
            dx, dy = rng.uniform(-0.03, 0.03, 2) * side
            made.append((cx + dx - side / 2, cy + dy - side / 2, cx + dx + side / 2, cy + dy + side / 2))
    return made


def _area(part: Part, ground: str, rng: np.random.Generator) -> Box:
    """The area for the objects of a scene with one part."""
    one = part.count == 1
    if not ground or ground.endswith("background"):
        side = rng.uniform(0.62, 0.97) if one else rng.uniform(0.9, 0.99)
        if rng.random() < 0.15 and one:
            side = rng.uniform(0.35, 0.6)
    else:
        side = rng.uniform(0.42, 0.72) if one else rng.uniform(0.75, 0.95)
    x = rng.uniform(0, 1 - side) if rng.random() < 0.5 else (1 - side) / 2
    low, high = 0.02, max(0.02, 0.98 - side)
    y = (1 - side) / 2
    if ground and one:
        y = rng.uniform(low, max(low, high * 0.5)) if part.thing in AIR else rng.uniform(max(low, high * 0.55), high)
    return (x, y, x + side, y + side)


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Box, Box]:
    """The areas of both parts, by their relation."""
    if scene.relation in ("on", "in front of"):
        side = rng.uniform(0.52, 0.66)
        x, y = rng.uniform(0.02, 0.98 - side), 0.98 - side - rng.uniform(0, 0.05)
        small = rng.uniform(0.36, 0.46)
        cx = x + side / 2 + rng.uniform(-0.08, 0.08)
        if scene.relation == "on":
            below = (x, y, x + side, y + side)
            foot = y + rng.uniform(0.06, 0.14)
            return (cx - small / 2, foot - small, cx + small / 2, foot), below
        y -= 0.2
        shift = rng.choice((-1, 1)) * rng.uniform(0.1, 0.2)
        foot = min(0.98, y + side + rng.uniform(0.08, 0.16))
        return (cx + shift - small / 2, foot - small, cx + shift + small / 2, foot), (x, y, x + side, y + side)
    middle = rng.uniform(0.46, 0.54)
    if scene.relation in ("left of", "right of"):
        first, second = (0.02, 0.1, middle - 0.01, 0.9), (middle + 0.01, 0.1, 0.98, 0.9)
        shift = rng.uniform(-0.08, 0.1)
        first, second = _moved(first, 0, shift), _moved(second, 0, shift + rng.uniform(-0.05, 0.05))
    else:
        first, second = (0.1, 0.02, 0.9, middle - 0.01), (0.1, middle + 0.01, 0.9, 0.98)
        shift = rng.uniform(-0.1, 0.1)
        first, second = _moved(first, shift, 0), _moved(second, shift + rng.uniform(-0.05, 0.05), 0)
    return (first, second) if scene.relation in ("left of", "above") else (second, first)


def _moved(box: Box, dx: float, dy: float) -> Box:
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def place(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Boxes for all objects of a scene, from back to front."""
    if len(scene.parts) == 2:
        areas = _two(scene, rng)
        pairs = list(zip(scene.parts, areas, strict=True))[::-1]
    else:
        pairs = [(part, _area(part, scene.ground, rng)) for part in scene.parts]
    return [Placed(part, box) for part, area in pairs for box in _cells(area, part.count, rng)]


class Sprites:
    """Sprites by label; recoloured ones are cached."""

    def __init__(self, own: Mapping[str, PIL.Image.Image]) -> None:
        """`own` are the objects in their original colours (`sprites.load`)."""
        self.own = own
        self.of = lru_cache(maxsize=4096)(self._of)

    def _of(self, label: str, colour: str) -> PIL.Image.Image:
        return tint(self.own[label], colour) if colour else self.own[label]


def draw(scene: Scene, sprites: Sprites, size: int, rng: np.random.Generator) -> Picture:
    """Draw the scene with a random layout; objects may be mirrored and slightly rotated."""
    canvas = PIL.Image.fromarray(grounds.draw(scene.ground, size, rng))
    placed = place(scene, rng)
    for each in placed:
        sprite = sprites.of(each.part.thing, each.part.colour)
        x0, y0, x1, y1 = (round(value * size) for value in each.box)
        scale = min((x1 - x0) / sprite.width, (y1 - y0) / sprite.height)
        small = sprite.resize((max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))),
                              PIL.Image.Resampling.HAMMING)  # fmt: skip
        if rng.random() < 0.4:
            small = small.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.3:
            small = small.rotate(rng.uniform(-9, 9), PIL.Image.Resampling.BILINEAR)
        # In the middle of its box across, on its lower edge down: things in a row stand on one line.
        canvas.paste(small, ((x0 + x1 - small.width) // 2, y1 - small.height), small)
    return Picture(np.asarray(canvas), tuple(placed))
