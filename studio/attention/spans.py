"""Attention of many requests at once, over one pool of keys and values in which each has a span: a step of text.

It is for GPUs. How long each is stands on the device, so that the host never waits and the launches can be captured in
a CUDA graph. On CUDA `torch.nn.attention.varlen` (FlashAttention 2) reads the spans where they lie, in one launch.
Where it is not to be had, keys and values are gathered, padded to the longest and masked. The project has not run it on
a card.

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
from studio.attention.dispatch import attend
from studio.attention.serving import served
from studio.caching import cached_property

NAME = "varlen"
_SHORT = (torch.float16, torch.bfloat16)
_WIDEST_HEAD = 256
MOST_OFF = 0.05  # of numbers around 1, in bfloat16
Kernel = Callable[[Tensor, Tensor, Tensor, "Spans", int | None, float], Tensor]


@dataclass(frozen=True, eq=False)
class Spans:
    """N requests, whose queries stand one behind the other in a packed row; the last key of each is its last query's.

    Attributes:
        ends: (N + 1,) int32, on the device: where each request's queries begin in the row, and their number.
        begins: (N + 1,) int32: where each span begins in the pool; the last number is not used.
        used: (N,) int32: keys of each, those of its queries among them.
        most_queries, most_keys: no request has more.
    """

    ends: Tensor
    begins: Tensor
    used: Tensor
    most_queries: int
    most_keys: int

    @cached_property
    def places(self) -> Tensor:
        """Where the keys of each stand in the pool, (N, most_keys); beyond those in use any place that there is."""
        at = torch.arange(self.most_keys, device=self.used.device)  # (K,)
        return self.begins[:-1, None] + torch.where(at < self.used[:, None], at, 0)

    @cached_property
    def queries(self) -> Tensor:
        """Where the queries of each stand in the row, (N, most_queries), the last one repeated."""
        at = torch.arange(self.most_queries, device=self.used.device)  # (n,)
        return torch.minimum(self.ends[:-1, None] + at, self.ends[1:, None] - 1)

    def rows(self, total: int) -> Tensor:
        """Where each of the `total` queries of the row stands among `queries`, flattened: (T,)."""
        at = torch.arange(total, dtype=torch.int32, device=self.used.device)  # (T,)
        request = torch.searchsorted(self.ends[1:], at, right=True)
        return request * self.most_queries + at - self.ends[request]

    @cached_property
    def _seen(self) -> dict[int | None, Tensor]:
        return {}

    def seen(self, window: int | None) -> Tensor:
        """Which keys each query sees, bool (N, 1, most_queries, most_keys)."""
        if window not in self._seen:
            at = torch.arange(self.most_keys, device=self.used.device)  # (K,)
            place = (self.used - self.ends[1:])[:, None] + self.queries  # (N, n), counted from the span's beginning
            seen = at <= place[..., None]
            if window is not None:
                seen &= at > place[..., None] - window
            self._seen[window] = seen[:, None]
        return self._seen[window]


def attend_spans(q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None = None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v of each request over its own span, causal from its last query and key on.

    Args:
        q: packed queries (T, heads, head_dim).
        k, v: the pool (tokens, kv_heads, head_dim); heads is a multiple of kv_heads.
        window: how many of the last keys a query sees, itself included; None is all.

    Returns (T, heads, head_dim). What stands in the pool outside of a request's keys never reaches it, NaN included.
    """
    if not why_not(q.dtype, q.device, q.shape[-1]):
        served(NAME)
        return KERNELS[q.device.type](q, k, v, spans, window, 1 / math.sqrt(q.shape[-1]))
    return _gathered(q, k, v, spans, window)


def why_not(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """Why the device's own kernel for spans cannot serve; empty if it can."""
    if device.type not in KERNELS:
        return f"there is no such kernel for {device.type}"
    return _why_not_cuda(dtype, device, head_dim) if device.type == "cuda" else ""


@cache
def _why_not_cuda(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """What FlashAttention 2 takes, as torch's own checks have it, and the arguments that this torch must know."""
    if dtype not in _SHORT:
        return f"the numbers are {str(dtype).removeprefix('torch.')}; it takes float16 and bfloat16"
    if head_dim % 8 or head_dim > _WIDEST_HEAD:
        return f"heads are of {head_dim}; it takes multiples of 8 up to {_WIDEST_HEAD}"
    if torch.version.hip:
        return "it is not known on ROCm"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "this torch has no torch.nn.attention.varlen"
    lacks = {"seqused_k", "window_size", "enable_gqa"} - {*inspect.signature(varlen_attn).parameters}
    return f"torch's varlen_attn does not know `{min(lacks)}`" if lacks else _tried(dtype, device, head_dim)


def _tried(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """Why the kernel fails on a small problem, or answers it wrongly: spans that lie apart, one of them with a prompt.

    Raises what says that memory ran out, which says nothing of the kernel.
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
    return "" if off < MOST_OFF else f"its answers are off by {off:.3g}"


def _varlen(q: Tensor, k: Tensor, v: Tensor, spans: Spans, window: int | None, scale: float) -> Tensor:
    """By FlashAttention, which takes a span's beginning from the sums of lengths and its length from `seqused_k`; its
    causal mask counts from the bottom right.
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
    """By whatever kernel takes a mask, over keys and values that were padded to the longest."""
    count, kv_heads = len(spans.used), k.shape[1]
    places = spans.places.flatten()
    seen = spans.seen(window)  # (N, 1, n, K)
    known = spans.seen(None)[:, 0, -1, :, None, None]  # (N, K, 1, 1): what is not known may be NaN
    keys, values = (
        each.index_select(0, places).view(count, -1, *each.shape[1:]).masked_fill(~known, 0) for each in (k, v)
    )  # (N, K, G, D) each
    each = q.shape[1] // kv_heads  # heads of queries for one of keys; they become queries of it
    padded = q[:, None] if spans.most_queries == 1 else q[spans.queries]  # (N, n, H, D)
    padded = padded.reshape(count, -1, kv_heads, each, q.shape[2]).transpose(2, 3).flatten(1, 2)  # (N, n * H/G, G, D)
    made = attend(padded, keys, values, bias=Dense(seen.repeat_interleave(each, 2)))
    made = (
        made.reshape(count, -1, each, kv_heads, q.shape[2]).transpose(2, 3).reshape(-1, *q.shape[1:])
    )  # (N * n, H, D)
    return made if spans.most_queries == 1 else made[spans.rows(len(q))]


KERNELS: dict[str, Kernel] = {"cuda": _varlen}  # by the type of the device
