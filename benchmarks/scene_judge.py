"""Classify a picture of a scene: which objects, how many, in which colours, where, and on which background.

Objects are connected regions that differ from the background. They are classified by the EfficientNet-Lite0 features
of their crop (the nearest picture; the encoder was not used in training the image model); colours, numbers, positions
and backgrounds by rules on pixels. `scenes.py --validate` measures the accuracy on composed pictures, whose content is
known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from recipes.scenes import grounds, picture
from recipes.scenes.scene import COLOURS, GROUNDS, Scene
from recipes.scenes.sprites import tint

TOP = 5
LEAST = 0.008  # of the picture: a smaller region is grain
DIFFERENCE = 9  # levels of 255 by which a pixel of a thing differs from the ground: the composer's white differs by 13
REFERENCE_TINTS = ("blue", "red", "grey", "white")


@dataclass(frozen=True)
class Region:
    """A part of a picture: its box in pixels (left, top, right, bottom), and which of its pixels are the thing's."""

    box: tuple[int, int, int, int]
    mask: np.ndarray

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def centre(self) -> tuple[float, float]:
        y, x = np.nonzero(self.mask)
        return self.box[0] + float(x.mean()), self.box[1] + float(y.mean())

    def within(self, left: float, top: float, right: float, bottom: float) -> Region:
        """The part of it in a box given in parts of its own."""
        h, w = self.mask.shape
        x0, x1, y0, y1 = round(left * w), round(right * w), round(top * h), round(bottom * h)
        x, y = self.box[:2]
        return Region((x + x0, y + y0, x + x1, y + y1), self.mask[y0:y1, x0:x1])


def foreground(pixels: np.ndarray) -> np.ndarray:
    """Which pixels (H, W) of a picture on a plain ground are not of the ground, the border's usual colour."""
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3),
                             pixels[:, -2:].reshape(-1, 3)])  # fmt: skip
    ground = np.median(border, axis=0)
    return np.abs(pixels.astype(np.float32) - ground).max(axis=2) > DIFFERENCE


def eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask without what is nearer than `pixels` to its edge."""
    h, w = mask.shape
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = np.all(
            [padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0
        )
    return mask


def components(mask: np.ndarray) -> np.ndarray:
    """A number for each connected region (8 neighbours), 0 where `mask` is not."""
    h, w = mask.shape
    labels = np.where(mask, np.arange(1, h * w + 1).reshape(h, w), 0)
    while True:
        padded = np.pad(labels, 1)
        near = np.max(
            [padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0
        )
        spread = np.where(mask, near, 0)
        if (spread == labels).all():
            return labels
        labels = spread


def regions(pixels: np.ndarray) -> list[Region]:
    """The things of a picture on a plain ground, largest first."""
    mask = foreground(pixels)
    labels = components(mask)
    made = []
    for label in np.unique(labels[labels > 0]):
        own = labels == label
        if own.mean() >= LEAST:
            y, x = np.nonzero(own)
            box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
            made.append(Region(box, own[box[1] : box[3], box[0] : box[2]]))
    return sorted(made, key=lambda region: -region.area)


def count(pixels: np.ndarray) -> int:
    """How many things of one kind are there: regions of at least a third of the largest's area, those that barely touch
    parted.
    """
    labels = components(eroded(foreground(pixels), 2))
    areas = np.unique(labels[labels > 0], return_counts=True)[1]
    return int((areas >= 0.33 * areas.max()).sum()) if len(areas) else 0


def crop(pixels: np.ndarray, region: Region) -> np.ndarray:
    """The region alone on white, square, (128, 128, 3)."""
    x0, y0, x1, y1 = region.box
    part = np.where(region.mask[..., None], pixels[y0:y1, x0:x1], 255).astype(np.uint8)
    side = round(max(part.shape[:2]) * 1.1)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(PIL.Image.fromarray(part), ((side - part.shape[1]) // 2, (side - part.shape[0]) // 2))
    return np.asarray(square.resize((128, 128), PIL.Image.Resampling.BICUBIC))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB values (..., 3) in 0 to 255."""
    c = rgb.astype(np.float64) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = c @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    f = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


_PALETTE = _lab(np.array([grounds.RGB[colour] for colour in COLOURS]))


def colour(pixels: np.ndarray, region: Region) -> str:
    """The composer's colour that most of the region's pixels are nearest to; greys count only where most are grey."""
    x0, y0, x1, y1 = region.box
    own = _lab(pixels[y0:y1, x0:x1][region.mask])
    chroma = np.hypot(own[:, 1], own[:, 2])
    if (chroma > 18).mean() > 0.35:
        own = own[chroma > 18]
        middle = np.median(own, axis=0)
        near = [i for i, name in enumerate(COLOURS) if name not in ("black", "white", "grey")]
    else:
        middle = np.median(own, axis=0)
        near = list(range(len(COLOURS)))
    distance = np.linalg.norm((_PALETTE[near] - middle) * [0.6, 1, 1], axis=1)
    return COLOURS[near[int(distance.argmin())]]


def ground_cells(pixels: np.ndarray) -> np.ndarray:
    """Mean colours of the border's 20 cells of a 6x6 grid, and how much each varies: float32 (20, 6), flat."""
    side = len(pixels) // 6
    grid = pixels[: 6 * side, : 6 * side].reshape(6, side, 6, side, 3).astype(np.float32)
    mean, deviation = grid.mean((1, 3)), grid.std((1, 3))  # (6, 6, 3)
    edge = np.ones((6, 6), bool)
    edge[1:-1, 1:-1] = False
    return np.concatenate([mean[edge], deviation[edge]], -1).ravel()


class SceneJudge:
    """The encoder with its references: each thing's own picture, also tinted, mirrored and turned."""

    def __init__(self, cache: Path, own: picture.Sprites, labels: Sequence[str]) -> None:
        """`labels` are the things that a crop is told among."""
        from recognition import Judge  # needs the extra `benchmarks`; the rules above do not

        self.eye = Judge(cache)
        self.labels = list(labels)
        shown, self._column = [], []
        for column, label in enumerate(self.labels):
            sprite = own.own[label]
            for each in (sprite, sprite.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
                         *(tint(sprite, name) for name in REFERENCE_TINTS)):  # fmt: skip
                flat = PIL.Image.new("RGB", each.size, "white")
                flat.paste(each, (0, 0), each)
                pixels = np.asarray(flat)
                shown.append(crop(pixels, Region((0, 0, *each.size), np.ones(pixels.shape[:2], bool))))
                self._column.append(column)
        self.references = self._remembered(np.stack(shown), cache)
        rng = np.random.default_rng(7)
        self._grounds = [(name, ground_cells(grounds.draw(name, 128, rng)))
                         for name in ("", *GROUNDS) for _ in range(60)]  # fmt: skip

    def _remembered(self, shown: np.ndarray, cache: Path) -> Tensor:
        """The references' features; a minute's work, so they are kept under the hash of their pixels."""
        kept = cache / f"scene-references-{hashlib.sha256(shown.tobytes()).hexdigest()[:16]}.npy"
        if not kept.exists():
            np.save(kept, self.eye.features(shown).numpy())
        return torch.from_numpy(np.load(kept))

    def ranks(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """For each crop the rank (from 1) of every label by its nearest reference: (crops, labels)."""
        near = self._near(self.eye.features(np.stack(crops)))
        return near.argsort(1, descending=True).argsort(1).numpy() + 1

    def _near(self, features: Tensor) -> Tensor:
        made = torch.full((len(features), len(self.labels)), -2.0)
        return made.index_reduce_(1, torch.tensor(self._column), features @ self.references.T, "amax")

    def ground(self, pixels: np.ndarray) -> str:
        """The ground whose drawn examples the picture's border is nearest to; empty for plain white."""
        cells = ground_cells(pixels)
        return min(self._grounds, key=lambda each: float(np.abs(each[1] - cells).sum()))[0]

    def one(self, pixels: np.ndarray, label: str) -> bool:
        """Whether the whole of what is painted is told as the thing, among the first `TOP`."""
        mask = foreground(pixels)
        if not mask.any():
            return False
        y, x = np.nonzero(mask)
        whole = Region((int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1),
                       mask[y.min() : y.max() + 1, x.min() : x.max() + 1])  # fmt: skip
        found = [whole, *regions(pixels)[:1]]
        rank = self.ranks([crop(pixels, region) for region in found])[:, self.labels.index(label)]
        return bool((rank <= TOP).any())

    def two(self, pixels: np.ndarray, scene: Scene) -> list[tuple[Region, Region]]:
        """All ways in which two parts of the picture are the scene's two things, each among the first `TOP`."""
        found = regions(pixels)[:4]
        if not found:
            return []
        halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.45), (0, 0.45, 1, 1), (0, 0, 1, 0.6), (0, 0.35, 1, 1),
                  (0, 0, 0.6, 1), (0.4, 0, 1, 1)]  # fmt: skip
        parts = [*found, *(part for half in halves if (part := found[0].within(*half)).area > 40)]
        ranks = self.ranks([crop(pixels, part) for part in parts])
        a, b = (self.labels.index(part.thing) for part in scene.parts)
        return [
            (parts[i], parts[j])
            for i, j in permutations(range(len(parts)), 2)
            if ranks[i, a] <= TOP and ranks[j, b] <= TOP and _overlap(parts[i], parts[j]) < 0.45
        ]


def _overlap(a: Region, b: Region) -> float:
    """The intersection of two boxes, as a part of the smaller."""
    w = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    h = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    sizes = [(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]) for r in (a, b)]
    return max(w, 0) * max(h, 0) / min(sizes)


def placed(a: Region, b: Region, relation: str) -> bool:
    """Whether `a` is where the relation says, seen from `b`: by their centres; on it, also that they meet across."""
    (ax, ay), (bx, by) = a.centre, b.centre
    if relation in ("left of", "right of"):
        return (ax < bx) == (relation == "left of") and abs(ax - bx) > abs(ay - by)
    if relation == "on":
        return ay < by and abs(ax - bx) < (b.box[2] - b.box[0]) / 2 + 4
    return (ay < by) == (relation == "above") and abs(ay - by) > abs(ax - bx)
