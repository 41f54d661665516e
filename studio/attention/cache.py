"""A KV cache for decoding: rows of different lengths in one preallocated buffer, without work for unused capacity.

A row's new keys and values are appended to those that it has; `attend` skips the padding.

Try it: ``python -c "from studio.attention import KVCache; print(KVCache(2, 16, 4, 8).lengths)"``
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.attention.bias import Lengths
from studio.attention.dispatch import Dispatch, current_dispatch
from studio.errors import UsageError


class KVCache:
    """Keys and values (rows, capacity, kv_heads, head_dim), and the number of tokens in each row (`lengths`)."""

    def __init__(
        self,
        rows: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.k = torch.zeros(rows, capacity, kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.lengths = [0] * rows

    @property
    def capacity(self) -> int:
        """The most tokens in a row."""
        return self.k.shape[1]

    def append(self, k: Tensor, v: Tensor, counts: Sequence[int] | None = None) -> None:
        """Append keys and values (rows, tokens, kv_heads, head_dim) to each row.

        Row i gets its first `counts[i]` tokens, by default all. Raises UsageError if the capacity is exceeded.
        """
        counts = [k.shape[1]] * len(self.lengths) if counts is None else list(counts)
        if k.shape != v.shape or k.shape[0] != len(self.lengths) or k.shape[2:] != self.k.shape[2:]:
            raise UsageError(f"k is {tuple(k.shape)}, v {tuple(v.shape)}; the cache is {tuple(self.k.shape)}")
        if len(counts) != len(self.lengths) or any(not 0 <= n <= k.shape[1] for n in counts):
            raise UsageError(f"counts is {counts}; it must be one number per row, each from 0 to {k.shape[1]}")
        if max(has + n for has, n in zip(self.lengths, counts, strict=True)) > self.capacity:
            raise UsageError(f"rows have {self.lengths} tokens and get {counts} more; the capacity is {self.capacity}")
        for row, (has, n) in enumerate(zip(self.lengths, counts, strict=True)):
            self.k[row, has : has + n] = k[row, :n]
            self.v[row, has : has + n] = v[row, :n]
            self.lengths[row] = has + n

    def attend(
        self, q: Tensor, *, scale: float | None = None, backend: str = "auto", dispatch: Dispatch | None = None
    ) -> Tensor:
        """Attend from one new token per row, (rows, 1, heads, head_dim), to all tokens of the row."""
        if q.dim() != 4 or q.shape[1] != 1:
            raise UsageError(f"q is {tuple(q.shape)}; decoding takes one token per row: (rows, 1, heads, head_dim)")
        longest = max(self.lengths, default=0)
        bias = None if min(self.lengths, default=0) == longest else Lengths(self.lengths)
        serve = (dispatch or current_dispatch()).attend
        return serve(q, self.k[:, :longest], self.v[:, :longest], bias=bias, scale=scale, backend=backend)
