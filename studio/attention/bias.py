"""Attention masks as descriptions, not tensors: Causal, Lengths (padding), Blocks (packed sequences), Dense, and sums.

A description knows which (query, key) pairs it allows, and the range of keys that a run of queries attends to, so that
a backend can skip the rest. A sum allows the pairs that all its terms allow, and adds up their score biases. Queries
whose keys are all masked get zeros. `SpaceTime` is in `spacetime.py`.

Try it: ``python -c "from studio.attention import Causal; print(Causal(window=4) + Causal())"``
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from studio import devices
from studio.errors import UsageError


class AttentionShape(NamedTuple):
    """The sizes of the scores that a bias applies to."""

    batch: int
    heads: int
    queries: int
    keys: int


class QuerySpan(NamedTuple):
    """Queries from `q0` up to `q1` (exclusive) of row `row` of the batch."""

    row: int
    q0: int
    q1: int


class Bias(ABC):
    """A description of a mask. Descriptions are immutable and are combined with `+`."""

    def __add__(self, other: Bias) -> BiasSum:
        return BiasSum((*self.parts, *other.parts))

    @property
    def parts(self) -> tuple[Bias, ...]:
        """The terms of a sum; otherwise the bias itself."""
        return (self,)

    @abstractmethod
    def signature(self, shape: AttentionShape) -> Hashable:
        """A key for caching the choice of a backend: equal for descriptions of equal cost."""

    @abstractmethod
    def check(self, shape: AttentionShape) -> None:
        """Raise UsageError if the bias does not fit `shape`."""

    @abstractmethod
    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
        """The allowed pairs: bool, broadcastable to (rows, heads, len(q), len(k)); `q` and `k` are int64 positions."""

    def added(self, rows: slice, q: Tensor, k: Tensor) -> Tensor | None:
        """The values added to the scores of allowed pairs, broadcastable as `visible`, or None."""
        return None

    def keys(self, span: QuerySpan, shape: AttentionShape) -> tuple[int, int]:
        """The range of keys, (first, last + 1), that the span's queries may attend to."""
        return 0, shape.keys

    def allows_all(self, span: QuerySpan, k0: int, k1: int, shape: AttentionShape) -> bool:
        """Whether all the span's queries attend to all keys from `k0` up to `k1` (exclusive)."""
        return False

    def cuts(self, shape: AttentionShape) -> tuple[int, ...]:
        """Queries at which a new set of visible keys begins, such as the first of each packed sequence."""
        return ()


@dataclass(frozen=True)
class Causal(Bias):
    """Query i attends to keys up to i + offset; with a `window` (sliding window attention) only to the last of them.

    Without an `offset` the last query attends to the last key: offset = keys - queries, as for decoding with a KV
    cache.
    """

    window: int | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        _whole("Causal", "offset", self.offset)
        _whole("Causal", "window", self.window)
        if self.window is not None and self.window < 1:
            raise UsageError(
                f"Causal's window is {self.window}; it must be at least 1",
                hint="leave it out to attend to all",
            )

    def shift(self, shape: AttentionShape) -> int:
        """The offset for these sizes."""
        return shape.keys - shape.queries if self.offset is None else self.offset

    def signature(self, shape: AttentionShape) -> Hashable:
        """Kind, whether it is `is_causal`, whether it masks nothing, and the window."""
        return (
            "causal",
            self.plain(shape),
            self.allows_all(QuerySpan(0, 0, shape.queries), 0, shape.keys, shape),
            self.window,
        )

    def plain(self, shape: AttentionShape) -> bool:
        """Whether it equals `is_causal` of torch's kernels: no window, and offset 0."""
        return self.window is None and self.shift(shape) == 0

    def check(self, shape: AttentionShape) -> None:
        """Every shape fits."""

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
        """See Bias."""
        behind = (q + self.shift(shape))[:, None] - k  # (q, k)
        return behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)

    def keys(self, span: QuerySpan, shape: AttentionShape) -> tuple[int, int]:
        """See Bias."""
        shift = self.shift(shape)
        first = 0 if self.window is None else span.q0 + shift - self.window + 1
        return max(0, first), min(shape.keys, span.q1 + shift)

    def allows_all(self, span: QuerySpan, k0: int, k1: int, shape: AttentionShape) -> bool:
        """See Bias."""
        shift = self.shift(shape)
        return k1 - 1 <= span.q0 + shift and (self.window is None or k0 > span.q1 - 1 + shift - self.window)


@dataclass(frozen=True)
class Lengths(Bias):
    """A padding mask: each row of the batch has a number of keys (and of queries, if given); the rest is padding.

    `keys` and `queries` have one whole number per row, or are an integer tensor (B,). Reading a tensor on a GPU waits
    for the device.
    """

    counts: tuple[int, ...]
    queries: tuple[int, ...] | None = None

    def __init__(self, keys: Sequence[int] | Tensor, queries: Sequence[int] | Tensor | None = None) -> None:
        object.__setattr__(self, "counts", _numbers("Lengths", "keys", keys))
        object.__setattr__(self, "queries", None if queries is None else _numbers("Lengths", "queries", queries))

    def signature(self, shape: AttentionShape) -> Hashable:
        """The kind, and whether queries are padded too."""
        return "lengths", self.queries is not None

    def check(self, shape: AttentionShape) -> None:
        """One number per row, from 0 to the number of tokens."""
        for name, found, most in (("keys", self.counts, shape.keys), ("queries", self.queries, shape.queries)):
            if found is None:
                continue
            if len(found) != shape.batch:
                raise UsageError(f"Lengths has {len(found)} values for {name}; it must have one per row, {shape.batch}")
            if found and (min(found) < 0 or max(found) > most):
                wrong = min(found) if min(found) < 0 else max(found)
                raise UsageError(f"Lengths has {wrong} {name}; it must be from 0 to {most}, the number of {name}")

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
        """See Bias."""
        seen = k < upload_ints(self.counts[rows], k)[:, None, None, None]  # (B, 1, 1, k)
        if self.queries is not None:
            there = q < upload_ints(self.queries[rows], q)[:, None, None]  # (B, 1, q)
            seen = seen & there[..., None]
        return seen

    def keys(self, span: QuerySpan, shape: AttentionShape) -> tuple[int, int]:
        """See Bias."""
        if self.queries is not None and span.q0 >= self.queries[span.row]:
            return 0, 0
        return 0, self.counts[span.row]

    def allows_all(self, span: QuerySpan, k0: int, k1: int, shape: AttentionShape) -> bool:
        """See Bias."""
        return k1 <= self.counts[span.row] and (self.queries is None or span.q1 <= self.queries[span.row])

    def row_key(self, row: int) -> Hashable:
        """Equal for rows of equal lengths."""
        return self.counts[row], None if self.queries is None else self.queries[row]


@dataclass(frozen=True)
class Blocks(Bias):
    """Packed sequences of different lengths in one row (block-diagonal mask); each attends only to itself.

    `cu_seqlens` are the cumulative lengths, from 0 to the number of tokens: `(0, 3, 10)` is a sequence of 3 tokens and
    one of 7. `cu_seqlens_k` are those of the keys where they differ, for the same number of sequences.
    """

    bounds: tuple[int, ...]
    key_bounds: tuple[int, ...]

    def __init__(self, cu_seqlens: Sequence[int] | Tensor, cu_seqlens_k: Sequence[int] | Tensor | None = None) -> None:
        object.__setattr__(self, "bounds", _numbers("Blocks", "cu_seqlens", cu_seqlens))
        keys = self.bounds if cu_seqlens_k is None else _numbers("Blocks", "cu_seqlens_k", cu_seqlens_k)
        object.__setattr__(self, "key_bounds", keys)
        for found in (self.bounds, self.key_bounds):
            if not found or found[0] != 0 or any(a > b for a, b in pairwise(found)):
                raise UsageError(f"cu_seqlens is {_short(found)}; it must begin with 0 and never decrease")
        if len(self.bounds) != len(self.key_bounds):
            raise UsageError(
                f"cu_seqlens has {len(self.bounds) - 1} sequences and cu_seqlens_k {len(self.key_bounds) - 1}; "
                "their numbers must match"
            )

    def signature(self, shape: AttentionShape) -> Hashable:
        """The kind, and the number of sequences to a power of two."""
        return "blocks", (len(self.bounds) - 1).bit_length()

    def check(self, shape: AttentionShape) -> None:
        """One row, and cumulative lengths that end with the number of tokens."""
        if shape.batch != 1:
            raise UsageError(f"Blocks needs all sequences packed into one row; the batch has {shape.batch} rows")
        for name, found, count in (("queries", self.bounds, shape.queries), ("keys", self.key_bounds, shape.keys)):
            if found[-1] != count:
                raise UsageError(f"cu_seqlens ends with {found[-1]}; it must end with {count}, the number of {name}")

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
        """See Bias."""
        bounds, key_bounds = (upload_ints(each[1:], q) for each in (self.bounds, self.key_bounds))
        return torch.bucketize(q, bounds, right=True)[:, None] == torch.bucketize(k, key_bounds, right=True)

    def cuts(self, shape: AttentionShape) -> tuple[int, ...]:
        """See Bias."""
        return self.bounds

    def keys(self, span: QuerySpan, shape: AttentionShape) -> tuple[int, int]:
        """See Bias; for a span over several sequences, the keys of all of them."""
        first, last = self._block(span.q0), self._block(span.q1 - 1)
        return self.key_bounds[first], self.key_bounds[last + 1]

    def allows_all(self, span: QuerySpan, k0: int, k1: int, shape: AttentionShape) -> bool:
        """See Bias."""
        first, last = self._block(span.q0), self._block(span.q1 - 1)
        return first == last and self.key_bounds[first] <= k0 and k1 <= self.key_bounds[first + 1]

    def _block(self, query: int) -> int:
        from bisect import bisect_right

        return bisect_right(self.bounds, query) - 1


@dataclass(frozen=True, eq=False)
class Dense(Bias):
    """A mask tensor that broadcasts to (batch, heads, queries, keys): bool (True attends), or floats added to scores.

    A float of -inf masks the pair.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.dtype != torch.bool and not self.tensor.is_floating_point():
            name = str(self.tensor.dtype).removeprefix("torch.")
            raise UsageError(f"Dense's tensor is {name}; it must be bool or floating point", hint="`tensor.bool()`")
        if self.tensor.dim() > 4:
            raise UsageError(f"Dense's tensor has {self.tensor.dim()} dimensions; it must have at most 4")

    def signature(self, shape: AttentionShape) -> Hashable:
        """Kind, shape, dtype, and whether it requires a gradient."""
        return "dense", tuple(self.tensor.shape), self.tensor.dtype, self.tensor.requires_grad

    def check(self, shape: AttentionShape) -> None:
        """The tensor must broadcast to the shape."""
        found = tuple(self.tensor.shape)
        if any(a not in (1, b) for a, b in zip(reversed(found), reversed(shape), strict=False)):
            raise UsageError(
                f"Dense's tensor is {found}; it must broadcast to (batch, heads, queries, keys) = {tuple(shape)}"
            )

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
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
class BiasSum(Bias):
    """The pairs that all terms allow, with the sum of what they add. Made by `+`."""

    terms: tuple[Bias, ...]

    @property
    def parts(self) -> tuple[Bias, ...]:
        """The terms."""
        return self.terms

    def signature(self, shape: AttentionShape) -> Hashable:
        """The terms' signatures."""
        return "sum", *(term.signature(shape) for term in self.terms)

    def check(self, shape: AttentionShape) -> None:
        """Each term must fit."""
        for term in self.terms:
            term.check(shape)

    def visible(self, rows: slice, q: Tensor, k: Tensor, shape: AttentionShape) -> Tensor:
        """See Bias."""
        seen = self.terms[0].visible(rows, q, k, shape)
        for term in self.terms[1:]:
            seen = seen & term.visible(rows, q, k, shape)
        return seen

    def added(self, rows: slice, q: Tensor, k: Tensor) -> Tensor | None:
        """See Bias."""
        found = [each for term in self.terms if (each := term.added(rows, q, k)) is not None]
        return sum(found[1:], start=found[0]) if found else None


def upload_ints(numbers: object, like: Tensor) -> Tensor:
    """Whole numbers on the device of a tensor; does not wait for the device."""
    return devices.upload(torch.tensor(numbers), like.device)


def _numbers(owner: str, name: str, given: Sequence[int] | Tensor) -> tuple[int, ...]:
    """Whole numbers as a tuple. Raises UsageError."""
    found = given.tolist() if isinstance(given, Tensor) else list(given)
    if not isinstance(found, list) or any(type(each) is not int for each in found):
        raise UsageError(f"{owner}'s {name} is {_short(found)}; it must be a sequence of whole numbers")
    return tuple(found)


def _whole(owner: str, name: str, given: object) -> None:
    if given is not None and type(given) is not int:
        raise UsageError(f"{owner}'s {name} is {given!r}; it must be a whole number")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
