"""`SpaceTime`: attention in windows of a (time, height, width) grid, as video transformers use it.

Neighborhood attention (arXiv:2204.07143), and with tiles sliding-tile attention (arXiv:2502.04507).

Try it: ``studio attention --shape 1,4096,8,64 --bias spacetime:grid=16x16x16,window=8x8x8,tile=4x4x4``
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from studio.attention.bias import AttentionShape, Bias, upload_ints
from studio.errors import UsageError


@dataclass(frozen=True)
class SpaceTime(Bias):
    """Tokens are a grid (T, H, W), row by row, and each attends to a box of `window` positions around it.

    At the borders the box is moved inwards, so that all queries attend to the same number of keys (neighborhood
    attention, arXiv:2204.07143). With a `tile` the box moves by whole tiles, and all queries of a tile share one box
    (sliding-tile attention, arXiv:2502.04507): much faster. Each side of `window` is then a multiple of the tile's.
    """

    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        sizes = [("grid", self.grid), ("window", self.window)] + ([("tile", self.tile)] if self.tile else [])
        for name, found in sizes:
            if len(found) != 3 or any(type(each) is not int or each < 1 for each in found):
                raise UsageError(f"SpaceTime's {name} is {found}; it must be (t, h, w), whole numbers of at least 1")
            object.__setattr__(self, name, tuple(found))
        for axis, n, w, t in zip("thw", self.grid, self.window, self.tile or (1, 1, 1), strict=True):
            if w % t:
                raise UsageError(f"SpaceTime's window is {w} along {axis}; it must be a multiple of the tile's {t}")
            if w > -(-n // t) * t:
                raise UsageError(
                    f"SpaceTime's window is {w} along {axis}; it must not be larger than the grid, which has {n}",
                    hint=f"give {n if t == 1 else -(-n // t) * t} for the whole axis",
                )

    @property
    def density(self) -> float:
        """The fraction of all pairs that is allowed."""
        return prod(sum(b - a for a, b in self.sees(axis)) / n**2 for axis, n in enumerate(self.grid))

    def sees(self, axis: int) -> list[tuple[int, int]]:
        """For each position along an axis, the range (first, last + 1) of positions that it attends to."""
        n, w, t = self.grid[axis], self.window[axis], self.tile[axis] if self.tile else 1
        tiles, wide = -(-n // t), w // t
        firsts = [min(max(i // t - wide // 2, 0), tiles - wide) * t for i in range(n)]
        return [(first, min(first + w, n)) for first in firsts]

    def signature(self, shape: AttentionShape) -> Hashable:
        """The bias itself."""
        return self

    def check(self, shape: AttentionShape) -> None:
        """Queries and keys must each match the number of grid positions."""
        count = prod(self.grid)
        if shape.queries != count or shape.keys != count:
            raise UsageError(
                f"SpaceTime's grid {self.grid} has {count} positions; there are {shape.queries} queries and "
                f"{shape.keys} keys, and both must be {count}"
            )

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
        """See Bias."""
        seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device)
        _, height, width = self.grid
        for axis, (step, n) in enumerate(zip((height * width, width, 1), self.grid, strict=True)):
            bounds = upload_ints(self.sees(axis), q)[q // step % n]  # (q, 2)
            at = k // step % n
            seen &= (at >= bounds[:, :1]) & (at < bounds[:, 1:])
        return seen
