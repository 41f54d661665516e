"""Batched decoding on a GPU: attention of many requests over one KV cache pool, in which each request has a span.

The lengths are on the device, so that the host never waits for it and a CUDA graph can capture the launches. On CUDA
`torch.nn.attention.varlen` (FlashAttention 2) reads the spans in place, in one launch. Where it is missing, keys and
values are gathered, padded to the longest and masked. Not run on a GPU yet.

Try it: ``pytest tests/studio/attention/test_spans.py``
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from studio.attention.bias import Dense
from studio.attention.current import record_backend
from studio.attention.dispatch import attend
from studio.caching import cached_property

NAME = "varlen"
_SHORT = (torch.float16, torch.bfloat16)
_WIDEST_HEAD = 256
MOST_OFF = 0.05  # error of outputs around 1, in bfloat16
Kernel = Callable[[Tensor, Tensor, Tensor, "Spans", int | None, float], Tensor]


@dataclass(frozen=True, eq=False)
class Spans:
    """N requests, whose queries are packed into one row; the last key of each belongs to its last query.

    Attributes:
        ends: (N + 1,) int32, on the device: where each request's queries begin in the row, then the total.
        begins: (N + 1,) int32: where each span begins in the pool; the last one is unused.
        used: (N,) int32: the number of keys of each, including those of its queries.
        most_queries, most_keys: upper bounds for every request.
    """

    ends: Tensor
    begins: Tensor
    used: Tensor
    most_queries: int
    most_keys: int

    @cached_property
    def key_positions(self) -> Tensor:
        """The positions of each request's keys in the pool, (N, most_keys); any valid one beyond those in use."""
        at = torch.arange(self.most_keys, device=self.used.device)  # (K,)
        return self.begins[:-1, None] + torch.where(at < self.used[:, None], at, 0)

    @cached_property
    def queries(self) -> Tensor:
        """The positions of each request's queries in the row, (N, most_queries), the last one repeated."""
        at = torch.arange(self.most_queries, device=self.used.device)  # (n,)
        return torch.minimum(self.ends[:-1, None] + at, self.ends[1:, None] - 1)

    def rows(self, total: int) -> Tensor:
        """The index of each of the row's `total` queries in `queries`, flattened: (T,)."""
        at = torch.arange(total, dtype=torch.int32, device=self.used.device)  # (T,)
        request = torch.searchsorted(self.ends[1:], at, right=True)
        return request * self.most_queries + at - self.ends[request]

    @cached_property
    def _seen(self) -> dict[int | None, Tensor]:
        return {}

    def seen(self, window: int | None) -> Tensor:
        """The mask, bool (N, 1, most_queries, most_keys), True for visible keys."""
        if window not in self._seen:
            at = torch.arange(self.most_keys, device=self.used.device)  # (K,)
            place = (self.used - self.ends[1:])[:, None] + self.queries  # (N, n), counted from the span's beginning
            seen = at <= place[..., None]
            if window is not None:
                seen &= at > place[..., None] - window
            self._seen[window] = seen[:, None]
        return self._seen[window]


def attend_spans(q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None = None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v of each request over its own span, causal from the bottom right.

    Args:
        q: packed queries (T, heads, head_dim).
        k, v: the pool (tokens, kv_heads, head_dim); heads is a multiple of kv_heads.
        window: the number of keys that a query attends to, including its own (sliding window); None is all.

    Returns (T, heads, head_dim). The rest of the pool never affects a request, not even NaN.
    """
    if not why_not(q.dtype, q.device, q.shape[-1]):
        record_backend(NAME)
        return KERNELS[q.device.type](q, k, v, spans, window, 1 / math.sqrt(q.shape[-1]))
    return _gathered(q, k, v, spans, window)


def why_not(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """Why the device's own kernel for spans cannot be used; empty if it can."""
    if device.type not in KERNELS:
        return f"there is no such kernel for {device.type}"
    return _why_not_cuda(dtype, device, head_dim) if device.type == "cuda" else ""


@cache
def _why_not_cuda(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """The limits of FlashAttention 2, by torch's own checks, and the arguments that this torch must have."""
    if dtype not in _SHORT:
        return f"dtype is {str(dtype).removeprefix('torch.')}; it needs float16 or bfloat16"
    if head_dim % 8 or head_dim > _WIDEST_HEAD:
        return f"head_dim is {head_dim}; it must be a multiple of 8 up to {_WIDEST_HEAD}"
    if torch.version.hip:
        return "it is not supported on ROCm"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "this torch has no torch.nn.attention.varlen"
    lacks = {"seqused_k", "window_size", "enable_gqa"} - {*inspect.signature(varlen_attn).parameters}
    return f"this torch's varlen_attn has no `{min(lacks)}`" if lacks else _tried(dtype, device, head_dim)


def _tried(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """Why the kernel fails on a small problem, or computes it wrongly: separate spans, one of them in prefill.

    Raises OutOfMemoryError, which says nothing about the kernel.
    """
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 2, head_dim, generator=draws).to(device, dtype) for n in (4, 64, 64))
    ends, begins, used = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 1, 4], [40, 8, 0], [9, 21]))
    spans = Spans(ends, begins, used, 3, 64)
    try:
        off = max(
            float((KERNELS[device.type](q, k, v, spans, window, head_dim**-0.5) - _gathered(q, k, v, spans, window))
                  .abs().max())
            for window in (None, 4)
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "" if off < MOST_OFF else f"its outputs are off by {off:.3g}"


def _varlen(q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None, scale: float) -> Tensor:
    """By FlashAttention, which takes a span's start from `cu_seq_k` and its length from `seqused_k`; its causal mask
    counts from the bottom right.
    """
    from torch.nn.attention.varlen import varlen_attn

    made = varlen_attn(
        q, k, v, spans.ends, spans.begins, spans.most_queries, spans.most_keys, scale=scale,
        window_size=(-1 if window is None else window - 1, 0), enable_gqa=q.shape[1] != k.shape[1],
        seqused_k=spans.used,
    )  # fmt: skip
    assert isinstance(made, Tensor)
    return made


def _gathered(q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None) -> Tensor:
    """By a kernel that takes a mask, over keys and values padded to the longest."""
    count, kv_heads = len(spans.used), k.shape[1]
    positions = spans.key_positions.flatten()
    seen = spans.seen(window)  # (N, 1, n, K)
    known = spans.seen(None)[:, 0, -1, :, None, None]  # (N, K, 1, 1): unused keys may be NaN
    keys, values = (
        each.index_select(0, positions).view(count, -1, *each.shape[1:]).masked_fill(~known, 0) for each in (k, v)
    )  # (N, K, G, D) each
    each = q.shape[1] // kv_heads  # query heads per key/value head; they become its queries
    padded = q[:, None] if spans.most_queries == 1 else q[spans.queries]  # (N, n, H, D)
    padded = padded.reshape(count, -1, kv_heads, each, q.shape[2]).transpose(2, 3).flatten(1, 2)  # (N, n * H/G, G, D)
    made = attend(padded, keys, values, bias=Dense(seen.repeat_interleave(each, 2)))
    made = (
        made.reshape(count, -1, each, kv_heads, q.shape[2]).transpose(2, 3).reshape(-1, *q.shape[1:])
    )  # (N * n, H, D)
    return made if spans.most_queries == 1 else made[spans.rows(len(q))]


KERNELS: dict[str, Kernel] = {"cuda": _varlen}  # by the type of the device
