"""Synthetic motion from still pictures: each verb as the poses of a picture over the time of a clip.

The middle frame of a clip has the rest pose, so that it equals the picture ("through"); a clip that starts from a given
picture starts at rest ("onward"). There are few poses, so that each picture is drawn and encoded once per pose, and
clips are assembled from them. Loads no torch.

Try it: `[pose.dx for pose in THROUGH["sliding left"]]` falls from 20 to -20 pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image

REST = 0.75
"""The scale at rest, which leaves space to move and to grow."""
PHASES = 16
"""Poses per motion, evenly spaced in time."""


@dataclass(frozen=True, order=True)
class Pose:
    """The position of a picture on the white canvas.

    Attributes:
        dx, dy: pixels of a picture 128 wide, to the right and down.
        angle: degrees, clockwise.
        scale: relative to the canvas.
        alpha: opacity, from 0 to 1.
    """

    dx: float = 0.0
    dy: float = 0.0
    angle: float = 0.0
    scale: float = REST
    alpha: float = 1.0


_REACH, _HEIGHT, _SWING = 20.0, 24.0, 6.0  # pixels
_SMALL, _LARGE = 0.45, 1.05  # scales
_TURN = 90.0  # degrees; most poses of a full turn have nothing in common with other training data
_AT_REST = Pose()

_PATHS: dict[str, Callable[[int], Pose]] = {
    "sliding left": lambda i: Pose(dx=_slide(-1, i)),
    "sliding right": lambda i: Pose(dx=_slide(1, i)),
    "sliding up": lambda i: Pose(dy=_slide(-1, i)),
    "sliding down": lambda i: Pose(dy=_slide(1, i)),
    "spinning clockwise": lambda i: Pose(angle=_turn(1, i)),
    "spinning anticlockwise": lambda i: Pose(angle=_turn(-1, i)),
    "bouncing": lambda i: Pose(dy=_round(8 - _HEIGHT * abs(math.sin(2 * math.pi * i / (PHASES - 1))))),
    "growing": lambda i: Pose(scale=_scale(i)),
    "shrinking": lambda i: Pose(scale=_scale(PHASES - 1 - i)),
    "shaking": lambda i: Pose(dx=(0, _SWING, 0, -_SWING)[i % 4]),
    "fading in": lambda i: Pose(alpha=min(1.0, _round(i / 10))),
}


def _round(value: float) -> float:
    return round(value, 3) + 0.0  # no -0.0


def _slide(way: int, i: int) -> float:
    return _round(way * _REACH * (2 * i / (PHASES - 1) - 1))


def _turn(way: int, i: int) -> float:
    return _round(way * _TURN * (i - PHASES // 2) / (PHASES - 1))


def _scale(i: int) -> float:
    return _round(_SMALL * (_LARGE / _SMALL) ** (i / (PHASES - 1)))


THROUGH: dict[str, tuple[Pose, ...]] = {name: tuple(path(i) for i in range(PHASES)) for name, path in _PATHS.items()}
"""The poses of each motion from the first frame to the last, at rest or nearly so in the middle."""


def _onward(name: str) -> tuple[Pose, ...]:
    whole = THROUGH[name]
    if name.startswith("spinning"):
        return whole[PHASES // 2 :]
    if name.startswith("sliding"):
        return (_AT_REST, *whole[PHASES // 2 :])
    if name in ("growing", "shrinking"):
        rest = next(i for i, pose in enumerate(whole) if (pose.scale > REST) == (name == "growing"))
        return (_AT_REST, *whole[rest:])
    return whole


ONWARD: dict[str, tuple[Pose, ...]] = {name: _onward(name) for name in _PATHS if name != "fading in"}
"""The same starting from rest, for clips with a given first frame."""

POSES: tuple[Pose, ...] = tuple(sorted({_AT_REST, *(pose for path in THROUGH.values() for pose in path)}))
"""The poses of all motions."""


def draw(picture: PIL.Image.Image, pose: Pose) -> np.ndarray:
    """The picture in a pose, on white: uint8 (S, S, 3) of a square RGB picture of S pixels a side."""
    side, turn, unit = picture.width, math.radians(pose.angle), picture.width / 128
    small = min(side, round(side * pose.scale))  # Pillow's affine transformation does not antialias
    if small < side:
        picture = picture.resize((small, small), PIL.Image.Resampling.LANCZOS)
    # Pillow needs the inverse transformation, from output to input.
    shrunk, middle = small / side / pose.scale, side / 2
    cos, sin = math.cos(turn) * shrunk, math.sin(turn) * shrunk
    x, y = middle + pose.dx * unit, middle + pose.dy * unit
    back = (cos, sin, small / 2 - cos * x - sin * y, -sin, cos, small / 2 + sin * x - cos * y)
    made = picture.transform((side, side), PIL.Image.Transform.AFFINE, back, PIL.Image.Resampling.BICUBIC,
                             fillcolor=(255, 255, 255))  # fmt: skip
    if pose.alpha < 1:
        made = PIL.Image.blend(PIL.Image.new("RGB", made.size, (255, 255, 255)), made, pose.alpha)
    return np.asarray(made)
