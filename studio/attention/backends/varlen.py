"""`varlen`: packed sequences of any lengths in one launch, by FlashAttention 2 (`torch.nn.attention.varlen`).

Other kernels need one call for each run of sequences of equal length. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from studio import devices
from studio.attention.backend import Backend
from studio.attention.backends.sdpa import neighbours
from studio.attention.bias import Blocks
from studio.attention.problem import Problem
from studio.devices.graphs import keep_alive

Kernel = Callable[[Tensor, Tensor, Tensor, Blocks, float], Tensor]  # of (T, H, D)


class Varlen(Backend):
    """Only `Blocks`: packed sequences."""

    name = "varlen"

    def refuses(self, problem: Problem) -> list[str]:
        """Other biases, gradients, and limits of the device's kernel."""
        reasons = [fault] if (fault := _why_not(problem)) else []
        if problem.head_dim != problem.value_dim:
            reasons.append(f"value head_dim {problem.value_dim} != key head_dim {problem.head_dim}")
        if problem.grad:
            reasons.append("it has no backward pass here")
        bias = problem.bias
        if not isinstance(bias, Blocks):
            return [*reasons, "it supports only Blocks"]
        if any(
            a < b and c == d for (a, b), (c, d) in zip(pairwise(bias.bounds), pairwise(bias.key_bounds), strict=True)
        ):
            reasons.append("a sequence has queries and no keys")
        return reasons

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        assert isinstance(problem.bias, Blocks)
        return KERNELS[q.device.type](q[0], k[0], v[0], problem.bias, scale)[None]


def _why_not(problem: Problem) -> str:
    from studio.attention.spans import why_not  # imported late: `spans` imports the dispatch, which imports this

    if problem.device.type not in KERNELS:
        return f"there is no such kernel for {problem.device.type}"
    if problem.device.type != "cuda":
        return ""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return why_not(problem.dtype, problem.device, problem.head_dim)


def _varlen(q: Tensor, k: Tensor, v: Tensor, bias: Blocks, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = neighbours(q, k, v)
    queries, keys = (keep_alive(_sent(each, q.device)) for each in (bias.bounds, bias.key_bounds))
    most = (max(b - a for a, b in pairwise(each)) for each in (bias.bounds, bias.key_bounds))
    made = varlen_attn(q, k, v, queries, keys, *most, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(made, Tensor)
    return made


@lru_cache(maxsize=128)
def _sent(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """Bounds on the device, int32. Cached: each layer uses them, and CUDA graphs cannot record such copies."""
    return devices.upload(torch.tensor(bounds, dtype=torch.int32), device)


KERNELS: dict[str, Kernel] = {"cuda": _varlen}  # by the type of the device
