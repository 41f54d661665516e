"""What a query may see, described instead of written out: Causal, Lengths, Blocks, SpaceTime, Dense, and sums of them.

A description knows which pairs it allows, and between which keys a run of queries can see anything at all, so that
a backend may skip the rest. A sum allows what all its parts allow, and adds up what they add. Queries that see nothing
get zeros. This module knows nothing of backends.

Try it: ``python -c "from studio.attention import Causal; print(Causal(window=4) + Causal())"``
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from studio import devices
from studio.errors import UsageError


class Shape(NamedTuple):
    """What a bias is laid over."""

    batch: int
    heads: int
    queries: int
    keys: int


class Span(NamedTuple):
    """Queries `q0` to `q1` of the batch's row `row`."""

    row: int
    q0: int
    q1: int


class Bias(ABC):
    """One description. Descriptions are immutable, and are added with `+`."""

    def __add__(self, other: Bias) -> Sum:
        return Sum((*self.parts, *other.parts))

    @property
    def parts(self) -> tuple[Bias, ...]:
        """The terms of a sum; of anything else itself."""
        return (self,)

    @abstractmethod
    def signature(self, shape: Shape) -> Hashable:
        """What a backend's choice may depend on: equal for descriptions that cost alike."""

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Raise UsageError if it does not fit `shape`."""

    @abstractmethod
    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """Which pairs it allows: bool, broadcastable to (rows, heads, len(q), len(k)); `q`, `k` are int64 positions."""

    def added(self, rows: slice, q: Tensor, k: Tensor) -> Tensor | None:
        """What is added to the scores of allowed pairs, in the same form, or None."""
        return None

    def keys(self, span: Span, shape: Shape) -> tuple[int, int]:
        """Between which keys the span's queries can see anything."""
        return 0, shape.keys

    def allows_all(self, span: Span, k0: int, k1: int, shape: Shape) -> bool:
        """Whether each of the span's queries sees all keys from `k0` to `k1`."""
        return False

    def cuts(self, shape: Shape) -> tuple[int, ...]:
        """Queries before which what is seen changes altogether."""
        return ()


@dataclass(frozen=True)
class Causal(Bias):
    """Query i sees the keys up to i + offset, and of these the last `window` alone if that is given.

    Without an `offset` the last query sees the last key: offset = keys - queries, as decoding with a cache needs it.
    """

    window: int | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        _whole("Causal", "offset", self.offset)
        _whole("Causal", "window", self.window)
        if self.window is not None and self.window < 1:
            raise UsageError(
                f"Causal's window is {self.window}; it must be at least 1", hint="leave it out for no window"
            )

    def shift(self, shape: Shape) -> int:
        """The offset in fact."""
        return shape.keys - shape.queries if self.offset is None else self.offset

    def signature(self, shape: Shape) -> Hashable:
        """Kind, whether plain (top left corner) or idle, and the window."""
        return (
            "causal",
            self.plain(shape),
            self.allows_all(Span(0, 0, shape.queries), 0, shape.keys, shape),
            self.window,
        )

    def plain(self, shape: Shape) -> bool:
        """Whether it is what kernels call `is_causal`."""
        return self.window is None and self.shift(shape) == 0

    def check(self, shape: Shape) -> None:
        """Any shape will do."""

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """See Bias."""
        behind = (q + self.shift(shape))[:, None] - k  # (q, k)
        return behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)

    def keys(self, span: Span, shape: Shape) -> tuple[int, int]:
        """See Bias."""
        shift = self.shift(shape)
        first = 0 if self.window is None else span.q0 + shift - self.window + 1
        return max(0, first), min(shape.keys, span.q1 + shift)

    def allows_all(self, span: Span, k0: int, k1: int, shape: Shape) -> bool:
        """See Bias."""
        shift = self.shift(shape)
        return k1 - 1 <= span.q0 + shift and (self.window is None or k0 > span.q1 - 1 + shift - self.window)


@dataclass(frozen=True)
class Lengths(Bias):
    """Of each row of the batch only the first so many keys exist (and queries, if given); the rest is padding.

    `keys` and `queries` are one whole number a row, or an integer tensor (B,); a tensor on a GPU is waited for.
    """

    counts: tuple[int, ...]
    queries: tuple[int, ...] | None = None

    def __init__(self, keys: Sequence[int] | Tensor, queries: Sequence[int] | Tensor | None = None) -> None:
        object.__setattr__(self, "counts", _numbers("Lengths", "keys", keys))
        object.__setattr__(self, "queries", None if queries is None else _numbers("Lengths", "queries", queries))

    def signature(self, shape: Shape) -> Hashable:
        """The kind alone."""
        return "lengths", self.queries is not None

    def check(self, shape: Shape) -> None:
        """One number a row, from 0 to what there is."""
        for name, found, most in (("keys", self.counts, shape.keys), ("queries", self.queries, shape.queries)):
            if found is None:
                continue
            if len(found) != shape.batch:
                raise UsageError(f"Lengths has {len(found)} {name}; the batch has {shape.batch} rows, each needs one")
            if found and (min(found) < 0 or max(found) > most):
                wrong = min(found) if min(found) < 0 else max(found)
                raise UsageError(f"Lengths of {name} has {wrong}; each must be from 0 to {most}, the {name} there are")

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """See Bias."""
        seen = k < _there(self.counts[rows], k)[:, None, None, None]  # (B, 1, 1, k)
        if self.queries is not None:
            there = q < _there(self.queries[rows], q)[:, None, None]  # (B, 1, q)
            seen = seen & there[..., None]
        return seen

    def keys(self, span: Span, shape: Shape) -> tuple[int, int]:
        """See Bias."""
        if self.queries is not None and span.q0 >= self.queries[span.row]:
            return 0, 0
        return 0, self.counts[span.row]

    def allows_all(self, span: Span, k0: int, k1: int, shape: Shape) -> bool:
        """See Bias."""
        return k1 <= self.counts[span.row] and (self.queries is None or span.q1 <= self.queries[span.row])

    def row_key(self, row: int) -> Hashable:
        """Equal for rows that see alike."""
        return self.counts[row], None if self.queries is None else self.queries[row]


@dataclass(frozen=True)
class Blocks(Bias):
    """Sequences of unlike lengths one after another in one row; each sees itself alone.

    `cu_seqlens` are the bounds, from 0 to the number of tokens: `(0, 3, 10)` is one of 3 tokens and one of 7. If keys
    are packed otherwise, `cu_seqlens_k` has their bounds, for as many sequences.
    """

    bounds: tuple[int, ...]
    key_bounds: tuple[int, ...]

    def __init__(self, cu_seqlens: Sequence[int] | Tensor, cu_seqlens_k: Sequence[int] | Tensor | None = None) -> None:
        object.__setattr__(self, "bounds", _numbers("Blocks", "cu_seqlens", cu_seqlens))
        keys = self.bounds if cu_seqlens_k is None else _numbers("Blocks", "cu_seqlens_k", cu_seqlens_k)
        object.__setattr__(self, "key_bounds", keys)
        for found in (self.bounds, self.key_bounds):
            if not found or found[0] != 0 or any(a > b for a, b in pairwise(found)):
                raise UsageError(f"cu_seqlens is {_short(found)}; it must begin with 0 and never fall")
        if len(self.bounds) != len(self.key_bounds):
            raise UsageError(
                f"cu_seqlens has {len(self.bounds) - 1} sequences and cu_seqlens_k {len(self.key_bounds) - 1}; "
                "they must be as many"
            )

    def signature(self, shape: Shape) -> Hashable:
        """The kind, and about how many there are."""
        return "blocks", (len(self.bounds) - 1).bit_length()

    def check(self, shape: Shape) -> None:
        """One row, and bounds that end with the tokens."""
        if shape.batch != 1:
            raise UsageError(f"Blocks packs all sequences into one row; the batch has {shape.batch}")
        for name, found, count in (("queries", self.bounds, shape.queries), ("keys", self.key_bounds, shape.keys)):
            if found[-1] != count:
                raise UsageError(
                    f"cu_seqlens ends with {found[-1]}; there are {count} {name}, and it must end with that"
                )

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """See Bias."""
        bounds, key_bounds = (_there(each[1:], q) for each in (self.bounds, self.key_bounds))
        return torch.bucketize(q, bounds, right=True)[:, None] == torch.bucketize(k, key_bounds, right=True)

    def cuts(self, shape: Shape) -> tuple[int, ...]:
        """See Bias."""
        return self.bounds

    def keys(self, span: Span, shape: Shape) -> tuple[int, int]:
        """See Bias; a span that `cuts` has not cut sees those of all its sequences."""
        first, last = self._block(span.q0), self._block(span.q1 - 1)
        return self.key_bounds[first], self.key_bounds[last + 1]

    def allows_all(self, span: Span, k0: int, k1: int, shape: Shape) -> bool:
        """See Bias."""
        first, last = self._block(span.q0), self._block(span.q1 - 1)
        return first == last and self.key_bounds[first] <= k0 and k1 <= self.key_bounds[first + 1]

    def _block(self, query: int) -> int:
        from bisect import bisect_right

        return bisect_right(self.bounds, query) - 1


@dataclass(frozen=True)
class SpaceTime(Bias):
    """Tokens are a grid (T, H, W), row by row, and each sees a box of `window` positions around it.

    At the borders the box is moved inwards, so that every query sees as many keys (neighborhood attention,
    arXiv:2204.07143). With a `tile` the box moves by whole tiles, and all queries of a tile see the same
    (sliding-tile attention, arXiv:2502.04507): much faster. Then each side of `window` is a multiple of the tile's.
    """

    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        sizes = [("grid", self.grid), ("window", self.window)] + ([("tile", self.tile)] if self.tile else [])
        for name, found in sizes:
            if len(found) != 3 or any(type(each) is not int or each < 1 for each in found):
                raise UsageError(f"SpaceTime's {name} is {found}; it must be three whole numbers (t, h, w) from 1")
            object.__setattr__(self, name, tuple(found))
        for axis, n, w, t in zip("thw", self.grid, self.window, self.tile or (1, 1, 1), strict=True):
            if w % t:
                raise UsageError(
                    f"SpaceTime's window is {w} along {axis}; with tiles of {t} it must be a multiple of {t}"
                )
            if w > -(-n // t) * t:
                raise UsageError(
                    f"SpaceTime's window is {w} along {axis}; the grid has {n}, and a window cannot be larger",
                    hint=f"{n} sees all of that axis" if t == 1 else f"{-(-n // t) * t} sees all of that axis",
                )

    @property
    def density(self) -> float:
        """The share of all pairs that is allowed."""
        return prod(sum(b - a for a, b in self.sees(axis)) / n**2 for axis, n in enumerate(self.grid))

    def sees(self, axis: int) -> list[tuple[int, int]]:
        """For each position along an axis, from which to which position it sees."""
        n, w, t = self.grid[axis], self.window[axis], self.tile[axis] if self.tile else 1
        tiles, wide = -(-n // t), w // t
        firsts = [min(max(i // t - wide // 2, 0), tiles - wide) * t for i in range(n)]
        return [(first, min(first + w, n)) for first in firsts]

    def signature(self, shape: Shape) -> Hashable:
        """Itself."""
        return self

    def check(self, shape: Shape) -> None:
        """As many queries and keys as the grid has positions."""
        count = prod(self.grid)
        if shape.queries != count or shape.keys != count:
            raise UsageError(
                f"SpaceTime's grid {self.grid} has {count} positions; there are {shape.queries} queries and "
                f"{shape.keys} keys, and both must be as many"
            )

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """See Bias."""
        seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device)
        _, height, width = self.grid
        for axis, (step, n) in enumerate(zip((height * width, width, 1), self.grid, strict=True)):
            bounds = _there(self.sees(axis), q)[q // step % n]  # (q, 2)
            at = k // step % n
            seen &= (at >= bounds[:, :1]) & (at < bounds[:, 1:])
        return seen


@dataclass(frozen=True, eq=False)
class Dense(Bias):
    """A tensor that broadcasts to (batch, heads, queries, keys): bool says who sees whom, floats are added to scores.

    Where -inf is added nothing is seen.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.dtype != torch.bool and not self.tensor.is_floating_point():
            name = str(self.tensor.dtype).removeprefix("torch.")
            raise UsageError(f"Dense's tensor is {name}; it must be bool or a floating type", hint="`tensor.bool()`")
        if self.tensor.dim() > 4:
            raise UsageError(f"Dense's tensor has {self.tensor.dim()} axes; it must have at most 4")

    def signature(self, shape: Shape) -> Hashable:
        """Kind, shape, dtype, and whether it wants a gradient."""
        return "dense", tuple(self.tensor.shape), self.tensor.dtype, self.tensor.requires_grad

    def check(self, shape: Shape) -> None:
        """It must broadcast."""
        found = tuple(self.tensor.shape)
        if any(a not in (1, b) for a, b in zip(reversed(found), reversed(shape), strict=False)):
            raise UsageError(
                f"Dense's tensor is {found}; it must broadcast to (batch, heads, queries, keys) = {tuple(shape)}"
            )

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """See Bias."""
        part = self._part(rows, q, k)
        return part if part.dtype == torch.bool else part != -torch.inf

    def added(self, rows: slice, q: Tensor, k: Tensor) -> Tensor | None:
        """See Bias."""
        return None if self.tensor.dtype == torch.bool else self._part(rows, q, k)

    def _part(self, rows: slice, q: Tensor, k: Tensor) -> Tensor:
        full = self.tensor[(None,) * (4 - self.tensor.dim())]
        full = full if full.shape[0] == 1 else full[rows]
        full = full if full.shape[2] == 1 or full.shape[2] == len(q) else full.index_select(2, q)
        return full if full.shape[3] == 1 or full.shape[3] == len(k) else full.index_select(3, k)


@dataclass(frozen=True)
class Sum(Bias):
    """What all terms allow, and what they add. Made by `+`."""

    terms: tuple[Bias, ...]

    @property
    def parts(self) -> tuple[Bias, ...]:
        """The terms."""
        return self.terms

    def signature(self, shape: Shape) -> Hashable:
        """Those of the terms."""
        return "sum", *(term.signature(shape) for term in self.terms)

    def check(self, shape: Shape) -> None:
        """Each must fit."""
        for term in self.terms:
            term.check(shape)

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
        """See Bias."""
        seen = self.terms[0].visible(rows, q, k, shape)
        for term in self.terms[1:]:
            seen = seen & term.visible(rows, q, k, shape)
        return seen

    def added(self, rows: slice, q: Tensor, k: Tensor) -> Tensor | None:
        """See Bias."""
        found = [each for term in self.terms if (each := term.added(rows, q, k)) is not None]
        return sum(found[1:], start=found[0]) if found else None


def _there(numbers: object, like: Tensor) -> Tensor:
    """Whole numbers on the device of a tensor, without a wait for it."""
    return devices.upload(torch.tensor(numbers), like.device)


def _numbers(owner: str, name: str, given: Sequence[int] | Tensor) -> tuple[int, ...]:
    """Whole numbers as a tuple. Raises UsageError."""
    found = given.tolist() if isinstance(given, Tensor) else list(given)
    if not isinstance(found, list) or any(type(each) is not int for each in found):
        raise UsageError(f"{owner}'s {name} is {_short(found)}; it must be a row of whole numbers")
    return tuple(found)


def _whole(owner: str, name: str, given: object) -> None:
    if given is not None and type(given) is not int:
        raise UsageError(f"{owner}'s {name} is {given!r}; it must be a whole number")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
