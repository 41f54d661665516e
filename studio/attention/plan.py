"""From a description to work: which queries meet which keys, block by block, and the mask of what is left to rule out.

Tokens are seen as a grid (one axis, or time, height and width), and a block is a box of queries and the box of keys
around all that they see. Boxes are slices, so that a block costs one copy of its keys or none. What no block has is
never looked at. This module knows nothing of kernels.

Try it: ``python -c "from studio.attention.plan import *; print(axes(SpaceTime((8, 8, 8), (4, 4, 4), (4, 4, 4))))"``
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby, pairwise, product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from studio.attention.bias import Bias, Lengths, Shape, SpaceTime, Span, Sum

MASKED_BLOCK = 256  # queries whose mask is written out at a time
OVERHEAD = 8000  # what starting a block costs, in pairs: about 100 us where 8 heads of 64 take 14 ns a pair


class Segment(NamedTuple):
    """Along one axis: queries `q0` to `q1` see nothing outside of keys `k0` to `k1`; `whole`: each sees all of them."""

    q0: int
    q1: int
    k0: int
    k1: int
    whole: bool


class Block(NamedTuple):
    """Boxes of queries and of keys, a slice for each axis of the grid; `visible` and `added` as in Bias, or None."""

    rows: slice
    q: tuple[slice, ...]
    k: tuple[slice, ...]
    visible: Tensor | None
    added: Tensor | None


def grids(bias: Bias | None, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of queries and of keys that blocks are boxes of."""
    local = _local(bias)
    return (local.grid, local.grid) if local else ((shape.queries,), (shape.keys,))


def blocks(bias: Bias | None, shape: Shape, device: torch.device, most: int | None = None) -> Iterator[Block]:
    """All blocks that hold a pair the bias allows. Every query is in at most one; those in none see nothing.

    A block has at most `most` queries if that is given; one whose mask must be written out has at most a few hundred.
    """
    local = _local(bias)
    if local is not None:
        others = [part for part in (bias.parts if bias else ()) if part is not local]
        yield from _boxes(local, others, shape, device)
    else:
        yield from _runs(bias, shape, device, most)


def _local(bias: Bias | None) -> SpaceTime | None:
    """The first window in the bias; should there be more, they are masks within its blocks."""
    return next((part for part in bias.parts if isinstance(part, SpaceTime)), None) if bias else None


def _rows(parts: list[Bias], batch: int) -> Iterator[slice]:
    """Runs of neighbouring rows that see alike."""
    lengths = [part for part in parts if isinstance(part, Lengths)]
    for _, run in groupby(range(batch), key=lambda row: [each.row_key(row) for each in lengths]):
        rows = list(run)
        yield slice(rows[0], rows[-1] + 1)


def _runs(bias: Bias | None, shape: Shape, device: torch.device, most: int | None) -> Iterator[Block]:
    """Blocks of a bias without a grid: runs of queries, and the run of keys between the first and the last they see."""
    parts = list(bias.parts) if bias else []
    cuts = sorted({0, shape.queries, *(cut for part in parts for cut in part.cuts(shape))})
    for rows in _rows(parts, shape.batch):
        for first, last in pairwise(cuts):
            masked = not _whole(parts, Span(rows.start, first, last), shape)
            step = min(MASKED_BLOCK if masked else last - first, most or last - first)
            for q0 in range(first, last, step):
                span = Span(rows.start, q0, min(q0 + step, last))
                k0, k1 = _keys(parts, span, shape)
                if k0 >= k1:
                    continue
                left = [part for part in parts if not part.allows_all(span, k0, k1, shape)]
                boxes = ((slice(span.q0, span.q1),), (slice(k0, k1),))
                where = (torch.arange(span.q0, span.q1, device=device), torch.arange(k0, k1, device=device))
                yield Block(rows, *boxes, *_masks(left, rows, where, shape))


def _keys(parts: list[Bias], span: Span, shape: Shape) -> tuple[int, int]:
    found = [part.keys(span, shape) for part in parts] or [(0, shape.keys)]
    return max(k0 for k0, _ in found), min(k1 for _, k1 in found)


def _whole(parts: list[Bias], span: Span, shape: Shape) -> bool:
    k0, k1 = _keys(parts, span, shape)
    return k0 >= k1 or all(part.allows_all(span, k0, k1, shape) for part in parts)


def _masks(
    parts: list[Bias], rows: slice, where: tuple[Tensor, Tensor], shape: Shape
) -> tuple[Tensor | None, Tensor | None]:
    if not parts:
        return None, None
    left = Sum(tuple(parts))
    return left.visible(rows, *where, shape), left.added(rows, *where)


def _boxes(local: SpaceTime, others: list[Bias], shape: Shape, device: torch.device) -> Iterator[Block]:
    """Blocks of a window: every combination of segments along the three axes."""
    for rows in _rows(others, shape.batch):
        for box in product(*axes(local)):
            q, k = tuple(slice(each.q0, each.q1) for each in box), tuple(slice(each.k0, each.k1) for each in box)
            seen = None if all(each.whole for each in box) else _window(local, box, device)
            added = None
            if others:
                where = (_positions(local.grid, q, device), _positions(local.grid, k, device))
                more, added = _masks(others, rows, where, shape)
                seen = more if seen is None or more is None else seen & more
            yield Block(rows, q, k, seen, added)


def _positions(grid: tuple[int, ...], box: tuple[slice, ...], device: torch.device) -> Tensor:
    """Where a box's tokens are in the row, in the box's order."""
    return torch.arange(prod(grid), device=device).view(grid)[box].flatten()


def _window(local: SpaceTime, box: tuple[Segment, ...], device: torch.device) -> Tensor:
    """Which pairs of a box are within the window: (queries, keys)."""
    seen = torch.ones((1,) * 6, dtype=torch.bool, device=device)
    for axis, each in enumerate(box):
        bounds = torch.tensor(local.sees(axis)[each.q0 : each.q1], device=device)  # (q, 2)
        at = torch.arange(each.k0, each.k1, device=device)
        along = (at >= bounds[:, :1]) & (at < bounds[:, 1:])  # (q, k) of this axis
        place = [1] * 6
        place[axis], place[axis + 3] = along.shape
        seen = seen & along.view(place)
    return seen.reshape(prod(seen.shape[:3]), prod(seen.shape[3:]))


@lru_cache(maxsize=256)
def axes(local: SpaceTime) -> tuple[tuple[Segment, ...], ...]:
    """How to cut the three axes, so that the blocks of all combinations cost least.

    Large blocks see more keys than each of their queries needs, small ones are slow to run: a kernel is taken to be
    slow by a third at 64 queries a block.
    """
    choices = [_choices(local.sees(axis), local.tile[axis] if local.tile else 1) for axis in range(3)]
    return min(product(*choices), key=_cost)


def _choices(sees: list[tuple[int, int]], tile: int) -> list[tuple[Segment, ...]]:
    """Ways to cut one axis: where what is seen changes, and by equal steps."""
    n = len(sees)
    found = {tuple(_segments(sees, [i for i in range(n) if i == 0 or sees[i] != sees[i - 1]]))}
    step = tile
    while step < n:
        found.add(tuple(_segments(sees, list(range(0, n, step)))))
        step *= 2
    found.add(tuple(_segments(sees, [0])))
    return sorted(found)


def _segments(sees: list[tuple[int, int]], starts: list[int]) -> Iterator[Segment]:
    for q0, q1 in zip(starts, [*starts[1:], len(sees)], strict=True):
        yield Segment(q0, q1, sees[q0][0], sees[q1 - 1][1], sees[q0] == sees[q1 - 1])


def _cost(cut: tuple[tuple[Segment, ...], ...]) -> tuple[float, int]:
    pairs = prod(sum((s.q1 - s.q0) * (s.k1 - s.k0) for s in axis) for axis in cut)
    count = prod(len(axis) for axis in cut)
    queries = prod(sum(s.q1 - s.q0 for s in axis) for axis in cut) / count
    masked = 1.0 if all(s.whole for axis in cut for s in axis) else 1.15
    # a mask is written out for a whole block, so a block that has one must stay small
    too_large = masked > 1 and queries > 4 * MASKED_BLOCK
    return (float("inf") if too_large else pairs * masked * (1 + 24 / queries) + count * OVERHEAD), count
