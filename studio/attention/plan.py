"""From a bias to blocks of the scores: which queries meet which keys, and the mask of each block that needs one.

Tokens form a grid (of one axis, or of time, height and width). A block is a box of queries and the box of keys around
all that they attend to. Boxes are slices, so that a block costs one copy of its keys or none. Pairs in no block are
skipped.

Try it: ``python -c "from studio.attention.plan import *; print(axes(SpaceTime((8, 8, 8), (4, 4, 4), (4, 4, 4))))"``
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache, partial
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from studio import devices
from studio.attention.bias import AttentionShape, Bias, BiasSum, Lengths, QuerySpan
from studio.attention.spacetime import SpaceTime
from studio.devices.graphs import keep_alive

MASKED_BLOCK = 256  # queries per materialized mask
PER_KEY = 5  # cost of a key in pairs: kernels are slower the fewer queries share a key, by a seventh at 32
PER_COPY = 15  # cost in pairs of copying a key into the contiguous keys of a box
MASKED = 1.05
MOST_MASKED = 4 << 20  # pairs of a box with a materialized mask
_LONGEST = 64  # changes of the visible keys within a segment


class BoxCost(NamedTuple):
    """The cost of a box in nanoseconds: `start` for its launches, for all heads; `pair` per pair of a head of 64."""

    start: float
    pair: float


BOX_COSTS = {
    "cpu": BoxCost(60_000, 1.6),  # measured on two Zen 4 cores
    "cuda": BoxCost(70_000, 0.0007),  # ten launches of 7 us, and an H200's rate: estimated, not measured
}


def box_cost(device: torch.device) -> BoxCost:
    """The costs on a device; those of a CPU for an unknown one."""
    return BOX_COSTS.get(device.type, BOX_COSTS["cpu"])


class AxisSegment(NamedTuple):
    """Along one axis: queries `q0` to `q1` attend only to keys `k0` to `k1`; `whole`: each attends to all of them."""

    q0: int
    q1: int
    k0: int
    k1: int
    whole: bool


class ScoreBlock(NamedTuple):
    """A box of queries and one of keys, a slice for each axis of the grid; `visible` and `added` as in Bias, or None.

    Blocks of one plan with equal patterns, other than None, have equal masks.
    """

    rows: slice
    q: tuple[slice, ...]
    k: tuple[slice, ...]
    visible: Tensor | None
    added: Tensor | None
    pattern: Hashable = None


class TensorCache:
    """A cache of tensors by key, with a limit on the number of elements."""

    def __init__(self, most: int = 4 << 20) -> None:
        self._most, self._held, self._made = most, 0, dict[Hashable, Tensor]()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made on a miss; the cache is cleared first where the limit would be exceeded."""
        if (found := self._made.get(key)) is None:
            found = make()
            if self._held + found.numel() > self._most:
                self._made.clear()
                self._held = 0
            self._made[key] = found
            self._held += found.numel()
        return found


def grids(bias: Bias | None, shape: AttentionShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The grids of queries and of keys that blocks are boxes of."""
    local = _local(bias)
    return (local.grid, local.grid) if local else ((shape.queries,), (shape.keys,))


def blocks(
    bias: Bias | None, shape: AttentionShape, device: torch.device, most: int | None = None
) -> Iterator[ScoreBlock]:
    """All blocks with a pair that the bias allows. A query is in at most one block; one in none has no visible keys.

    A block has at most `most` queries, if given; one with a materialized mask has at most a few hundred.
    """
    local = _local(bias)
    if local is not None:
        others = [part for part in (bias.parts if bias else ()) if part is not local]
        yield from _boxes(local, others, shape, device)
    else:
        yield from _runs(bias, shape, device, most)


def _local(bias: Bias | None) -> SpaceTime | None:
    """The first window in the bias; any others become masks within its blocks."""
    return next((part for part in bias.parts if isinstance(part, SpaceTime)), None) if bias else None


def _rows(parts: list[Bias], shape: AttentionShape, cost: BoxCost) -> Iterator[list[int]]:
    """Runs of neighbouring rows with equal lengths, or where computing padding costs less than another block."""
    lengths = [part for part in parts if isinstance(part, Lengths)]
    if not lengths:
        yield list(range(shape.batch))
        return
    spared = cost.start / cost.pair / (shape.queries + PER_KEY + PER_COPY) / shape.heads  # keys
    run: list[int] = []
    used = longest = 0
    for row in range(shape.batch):
        k0, k1 = _keys(parts, [QuerySpan(row, 0, shape.queries)], shape)
        keys = max(k1 - k0, 0)
        most = max(longest, keys)
        alike = run and all(each.row_key(row) == each.row_key(row - 1) for each in lengths)
        if run and not alike and most * (len(run) + 1) - used - keys > spared:
            yield run
            run, used, most = [], 0, keys
        run.append(row)
        longest, used = most, most * len(run)
    if run:
        yield run


def _runs(bias: Bias | None, shape: AttentionShape, device: torch.device, most: int | None) -> Iterator[ScoreBlock]:
    """Blocks of a bias without a grid: runs of queries, and the keys from the first to the last that they attend to."""
    parts = list(bias.parts) if bias else []
    cuts = sorted({0, shape.queries, *(cut for part in parts for cut in part.cuts(shape))})
    for rows in _rows(parts, shape, box_cost(device)):
        for first, last in pairwise(cuts):
            masked = not _whole(parts, [QuerySpan(row, first, last) for row in rows], shape)
            step = min(MASKED_BLOCK if masked else last - first, most or last - first)
            for q0 in range(first, last, step):
                spans = [QuerySpan(row, q0, min(q0 + step, last)) for row in rows]
                k0, k1 = _keys(parts, spans, shape)
                if k0 >= k1:
                    continue
                left = [part for part in parts if not _allows_all(part, spans, k0, k1, shape)]
                q1, part = spans[0].q1, slice(rows[0], rows[-1] + 1)
                masks: tuple[Tensor | None, Tensor | None] = (None, None)
                if left:
                    where = (torch.arange(q0, q1, device=device), torch.arange(k0, k1, device=device))
                    masks = _masks(left, part, where, shape)
                yield ScoreBlock(part, (slice(q0, q1),), (slice(k0, k1),), *masks)


def _keys(parts: list[Bias], spans: list[QuerySpan], shape: AttentionShape) -> tuple[int, int]:
    """The range of keys that all terms may allow the spans' queries; (keys, 0) if it is empty."""
    first, last = shape.keys, 0
    for span in spans:
        k0, k1 = 0, shape.keys
        for part in parts:
            a, b = part.keys(span, shape)
            k0, k1 = a if a > k0 else k0, b if b < k1 else k1
        if k0 < k1:
            first, last = min(first, k0), max(last, k1)
    return first, last


def _allows_all(part: Bias, spans: list[QuerySpan], k0: int, k1: int, shape: AttentionShape) -> bool:
    return all(part.allows_all(span, k0, k1, shape) for span in spans)


def _whole(parts: list[Bias], spans: list[QuerySpan], shape: AttentionShape) -> bool:
    k0, k1 = _keys(parts, spans, shape)
    return k0 >= k1 or all(_allows_all(part, spans, k0, k1, shape) for part in parts)


def _masks(
    parts: list[Bias], rows: slice, where: tuple[Tensor, Tensor], shape: AttentionShape
) -> tuple[Tensor | None, Tensor | None]:
    left = BiasSum(tuple(parts))
    return left.visible(rows, *where, shape), left.added(rows, *where)


def _boxes(local: SpaceTime, others: list[Bias], shape: AttentionShape, device: torch.device) -> Iterator[ScoreBlock]:
    """Blocks of a window: every combination of segments along the three axes, those of one area in sequence."""
    cost = box_cost(device)
    time, height, width = axes(local, shape.batch * shape.heads, cost)
    masks = TensorCache()
    for run in _rows(others, shape, cost):
        rows = slice(run[0], run[-1] + 1)
        for h, w, t in product(height, width, time):
            box = (t, h, w)
            q, k = tuple(slice(each.q0, each.q1) for each in box), tuple(slice(each.k0, each.k1) for each in box)
            seen, added, pattern = None, None, None
            if not all(each.whole for each in box):
                pattern = tuple(_relative(local, axis, each) for axis, each in enumerate(box))
                seen = masks.get(pattern, partial(_window, pattern, device))
            if others:
                where = (_positions(local.grid, q, device), _positions(local.grid, k, device))
                more, added = _masks(others, rows, where, shape)
                seen = more if seen is None or more is None else seen & more
                pattern = None
            yield ScoreBlock(rows, q, k, seen, added, pattern)


def _positions(grid: tuple[int, ...], box: tuple[slice, ...], device: torch.device) -> Tensor:
    """The positions of a box's tokens in the row, in the box's order."""
    return torch.arange(prod(grid), device=device).view(grid)[box].flatten()


_Pattern = tuple[int, tuple[tuple[int, int], ...]]  # of an axis: the number of keys, and each query's range


def _relative(local: SpaceTime, axis: int, each: AxisSegment) -> _Pattern:
    return each.k1 - each.k0, tuple((a - each.k0, b - each.k0) for a, b in local.sees(axis)[each.q0 : each.q1])


def _window(pattern: tuple[_Pattern, ...], device: torch.device) -> Tensor:
    """The mask of a box: (queries, keys), True within the window."""
    seen = torch.ones((1,) * 6, dtype=torch.bool, device=device)
    for axis, (keys, sees) in enumerate(pattern):
        bounds = torch.tensor(sees) if device.type == "cpu" else keep_alive(_sent(sees, device))  # (q, 2)
        at = torch.arange(keys, device=device)
        along = (at >= bounds[:, :1]) & (at < bounds[:, 1:])  # (q, k) of this axis
        place = [1] * 6
        place[axis], place[axis + 3] = along.shape
        seen = seen & along.view(place)
    return seen.reshape(prod(seen.shape[:3]), prod(seen.shape[3:]))


@lru_cache(maxsize=256)
def _sent(sees: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """The ranges along an axis, on a GPU. Cached, since CUDA graphs cannot record copies from the host."""
    with torch.inference_mode(False):  # training may ask for them later
        return devices.upload(torch.tensor(sees), device)


class Cut(NamedTuple):
    """One way to split an axis: its pairs and keys summed over segments, and the pairs of the largest."""

    segments: tuple[AxisSegment, ...]
    pairs: int
    keys: int
    most: int


@lru_cache(maxsize=256)
def axes(local: SpaceTime, heads: int, cost: BoxCost = BOX_COSTS["cpu"]) -> tuple[tuple[AxisSegment, ...], ...]:
    """How to split the three axes at the least cost of all blocks; `heads` is the number of heads over all rows.

    Large boxes compute keys that some of their queries do not need; small ones cost launches.
    """
    found = [cuts(local.sees(axis), local.tile[axis] if local.tile else 1) for axis in range(3)]
    best = min(product(*found), key=lambda cut: _cost(cut, local.grid, cost.start / cost.pair / heads))
    return tuple(each.segments for each in best)


def cuts(sees: list[tuple[int, int]], tile: int) -> list[Cut]:
    """Ways to split one axis: those of the fewest pairs and keys, at several costs of a key, and equal steps."""
    n = len(sees)
    changes = [i for i in range(n) if i == 0 or sees[i] != sees[i - 1]]
    found = {tuple(_cheapest(sees, changes, 2**power)) for power in range(n.bit_length() + 1)}
    step = tile
    while step < 2 * n:
        found.add(tuple(range(0, n, step)))
        step *= 2
    return [_cut(sees, starts) for starts in sorted(found)]


def _cheapest(sees: list[tuple[int, int]], changes: list[int], key_cost: int) -> list[int]:
    """The `changes` at which segments begin so that the sum of their keys times (their queries + key_cost) is least."""
    ends = [*changes[1:], len(sees)]
    cost, begin = [0], list[int]()
    for last, q1 in enumerate(ends):
        k1 = sees[q1 - 1][1]
        tried = range(max(0, last - _LONGEST), last + 1)
        best = min((cost[i] + (k1 - sees[changes[i]][0]) * (q1 - changes[i] + key_cost), i) for i in tried)
        cost.append(best[0])
        begin.append(best[1])
    starts, last = [], len(ends)
    while last:
        last = begin[last - 1]
        starts.append(changes[last])
    return starts[::-1]


def _cut(sees: list[tuple[int, int]], starts: tuple[int, ...]) -> Cut:
    ends = (*starts[1:], len(sees))
    segments = tuple(
        AxisSegment(q0, q1, sees[q0][0], sees[q1 - 1][1], sees[q0] == sees[q1 - 1])
        for q0, q1 in zip(starts, ends, strict=True)
    )
    pairs = [(each.q1 - each.q0) * (each.k1 - each.k0) for each in segments]
    return Cut(segments, sum(pairs), sum(each.k1 - each.k0 for each in segments), max(pairs))


def _cost(cut: tuple[Cut, ...], grid: tuple[int, int, int], start: float) -> float:
    """The cost in pairs of one head; `start` is that of launching a box."""
    count = prod(len(each.segments) for each in cut)
    masked = not all(s.whole for each in cut for s in each.segments)
    if masked and prod(each.most for each in cut) > MOST_MASKED:
        return float("inf")
    pairs, keys = prod(each.pairs for each in cut), prod(each.keys for each in cut)
    copied = grid[0] * cut[1].keys * cut[2].keys  # boxes of one height and width share a copy
    return pairs * (MASKED if masked else 1) + PER_KEY * keys + PER_COPY * copied + start * count
