"""Biases written out as masks, for kernels that know nothing else, and how large such a mask may be."""

from __future__ import annotations

import threading
from typing import cast

import torch
from torch import Tensor

from studio.attention.bias import Bias
from studio.attention.plan import Kept
from studio.attention.problem import Problem
from studio.devices.graphs import keep_alive

MOST_MASK = 64 << 20  # bytes of a mask that may be written out; more would grow with the square of the tokens


_kept = Kept(most=8 << 20)
_keeping = threading.Lock()


def written_out(problem: Problem) -> Tensor | None:
    """The whole bias as floats in the problem's dtype, -inf where nothing is seen; broadcasts to (B, H, Q, K).

    On a GPU the latest are kept over layers and steps, since making one waits for the device: 8 million numbers in all.
    A `Dense` tensor is not described by its bias and is never kept.
    """
    bias = problem.bias
    if bias is None:
        return None
    if problem.device.type == "cpu" or "Dense" in problem.kinds:
        return _made(problem, bias)
    key = (bias, problem.shape, problem.device, problem.dtype)
    with _keeping:
        return keep_alive(_kept.get(key, lambda: cast(Tensor, _made(problem, bias))))


def _made(problem: Problem, bias: Bias) -> Tensor | None:
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
    """0 where a pair is seen and -inf where it is not, with four axes."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
    return mask[(None,) * (4 - mask.dim())]


def too_large_a_mask(problem: Problem) -> list[str]:
    """The reason, if the bias would have to be written out and is large."""
    if (size := problem.mask_bytes()) > MOST_MASK:
        return [f"it would write out a mask of {size >> 20:,} MiB; it does so up to {MOST_MASK >> 20} MiB"]
    return []
