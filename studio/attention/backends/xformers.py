"""`xformers`: the kernels of the optional package, for packed sequences, padded caches and causal windows, on CUDA.

Written against xformers 0.0.35; not measured, as its kernels need CUDA.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from studio.attention.backend import Backend
from studio.attention.bias import Blocks, Causal
from studio.attention.problem import Problem
from studio.devices.graphs import keep_alive


class Xformers(Backend):
    """No bias, Blocks, or Causal from the bottom right, with or without a window."""

    name = "xformers"

    def refuses(self, problem: Problem) -> list[str]:
        """A missing package, no CUDA, other biases, and head sizes that are not a multiple of 8."""
        reasons = [fault] if (fault := _missing(problem.device.type)) else []
        if problem.dtype == torch.float64:
            reasons.append("it does not support float64")
        if problem.head_dim != problem.value_dim or problem.head_dim % 8:
            reasons.append(f"head_dim is {problem.head_dim} and {problem.value_dim}; it needs one multiple of 8")
        if problem.heads != problem.kv_heads:
            reasons.append("it has no grouped-query attention here")
        bias = problem.bias
        if problem.open or isinstance(bias, Blocks):
            return reasons
        if not isinstance(bias, Causal):
            reasons.append(f"it supports Causal and Blocks, not {' + '.join(sorted(problem.kinds))}")
        elif bias.shift(problem.shape) != problem.keys - problem.queries:
            reasons.append("its causal mask counts from the bottom right")
        return reasons

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        fmha = importlib.import_module("xformers.ops")
        made = fmha.memory_efficient_attention(q, k, v, attn_bias=mask_of(problem), scale=scale)
        return made  # type: ignore[no-any-return]


def mask_of(problem: Problem) -> Any:
    """xformers' own description of the problem's bias, or None."""
    if problem.open or problem.bias is None:
        return None
    kinds = importlib.import_module("xformers.ops.fmha.attn_bias")
    bias = problem.bias
    if isinstance(bias, Blocks):
        return keep_alive(_block_diagonal(bias, problem.device))
    assert isinstance(bias, Causal)
    if bias.window is None:
        return kinds.LowerTriangularFromBottomRightMask()
    return kinds.LocalAttentionFromBottomRightMask(window_left=bias.window - 1, window_right=0)


@lru_cache(maxsize=64)
def _block_diagonal(bias: Blocks, device: torch.device) -> Any:
    """xformers' mask of packed sequences. Cached: the first use copies its bounds to the device, which CUDA graphs
    cannot record.
    """
    kinds = importlib.import_module("xformers.ops.fmha.attn_bias")
    sizes = [[b - a for a, b in pairwise(found)] for found in (bias.bounds, bias.key_bounds)]
    return kinds.BlockDiagonalMask.from_seqlens(*sizes, device=device)


@cache
def _missing(device: str) -> str:
    if importlib.util.find_spec("xformers") is None:
        return "not installed: `pip install 'multimodal-studio[xformers]'`"
    if device == "cpu":
        return "its kernels need CUDA"  # without CUDA, importing them prints warnings
    try:
        importlib.import_module("xformers.ops")
    except (ImportError, OSError, RuntimeError) as error:
        return f"cannot be imported: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
