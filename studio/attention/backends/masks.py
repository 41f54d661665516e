"""Biases materialized as mask tensors, for kernels that take only those, and the largest such mask."""

from __future__ import annotations

import threading
from typing import cast

import torch
from torch import Tensor

from studio.attention.bias import Bias
from studio.attention.plan import TensorCache
from studio.attention.problem import Problem
from studio.devices.graphs import keep_alive

MOST_MASK = 64 << 20  # bytes of a materialized mask, which grows with the square of the tokens


_cache = TensorCache(most=8 << 20)
_cache_lock = threading.Lock()


def materialized(problem: Problem) -> Tensor | None:
    """The whole bias as floats in the problem's dtype, -inf where masked; broadcasts to (B, H, Q, K).

    On a GPU the latest masks are cached over layers and steps, up to 8 million elements: making one waits for the
    device. A `Dense` tensor is never cached, since its signature does not include its values.
    """
    bias = problem.bias
    if bias is None:
        return None
    if problem.device.type == "cpu" or "Dense" in problem.kinds:
        return _materialized(problem, bias)
    key = (bias, problem.shape, problem.device, problem.dtype)
    with _cache_lock:
        return keep_alive(_cache.get(key, lambda: cast(Tensor, _materialized(problem, bias))))


def _materialized(problem: Problem, bias: Bias) -> Tensor | None:
    where = (torch.arange(n, device=problem.device) for n in (problem.queries, problem.keys))
    q, k = where
    rows = slice(0, problem.batch)
    return as_floats(bias.visible(rows, q, k, problem.shape), bias.added(rows, q, k), problem.dtype)


def as_floats(visible: Tensor | None, added: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """One float mask (B or 1, H or 1, Q, K) of a block's two, or None."""
    if added is None:
        return None if visible is None else floats_of(visible, dtype)
    mask = added.to(dtype) if visible is None else added.to(dtype).masked_fill(~visible, -torch.inf)
    return mask[(None,) * (4 - mask.dim())]


def floats_of(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for allowed pairs and -inf for masked ones, with four dimensions."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
    return mask[(None,) * (4 - mask.dim())]


def too_large_a_mask(problem: Problem) -> list[str]:
    """The reason, if the materialized mask is too large."""
    if (size := problem.mask_bytes()) > MOST_MASK:
        return [f"it needs a mask of {size >> 20:,} MiB; the limit is {MOST_MASK >> 20} MiB"]
    return []
