"""`flex`: torch's FlexAttention, compiled, with block masks made from the description.

Compilation takes seconds, so it pays only for large problems. On a CPU torch compiles only the forward pass. Not
measured on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Hashable
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from studio.attention.backend import Backend
from studio.attention.bias import AttentionShape, Bias, Blocks, Causal, Lengths
from studio.attention.problem import Problem
from studio.attention.spacetime import SpaceTime
from studio.devices.graphs import keep_alive

_OWN_LIMIT = {"recompile_limit": 16, "isolate_recompiles": True}  # missing in torch's type stubs
_SERVED = {"Causal", "Lengths", "Blocks", "SpaceTime"}


class Flex(Backend):
    """One compiled kernel that skips masked blocks of 128 by 128 pairs."""

    name = "flex"

    def refuses(self, problem: Problem) -> list[str]:
        """No compiler, float64, gradients on a CPU, `Dense` biases, and head sizes that are not a power of 2."""
        reasons = [fault] if (fault := _missing(problem.device.type)) else []
        if unserved := problem.kinds - _SERVED:
            reasons.append(f"{' and '.join(sorted(unserved))} cannot be a block mask")
        if problem.dtype == torch.float64:
            reasons.append("it does not support float64")
        if problem.device.type == "cpu" and problem.grad:
            reasons.append("on the CPU it has no backward pass, and gradients are needed")
        if problem.head_dim != problem.value_dim or problem.head_dim & (problem.head_dim - 1) or problem.head_dim < 16:
            reasons.append(
                f"head_dim is {problem.head_dim} and {problem.value_dim}; it needs one power of 2 from 16 on"
            )
        return reasons

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (B, H, T, D)
        mask = None
        if problem.bias is not None and not problem.open:
            mask = keep_alive(_block_mask(problem.bias, problem.shape, q.device))
        kind = (problem.sizes, problem.dtype, problem.device, problem.grad, _kind(problem))
        made = _compiled(kind)(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return made.transpose(1, 2)  # type: ignore[no-any-return]


@cache
def _missing(device: str) -> str:
    """Why it cannot be compiled here; empty if it can."""
    try:
        found = importlib.util.find_spec("torch.nn.attention.flex_attention")
    except ImportError as error:
        return f"this torch has no FlexAttention: {error}"
    if found is None:
        return "this torch has no FlexAttention"
    if device == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        return "" if shutil.which(compiler) else f"it needs a C++ compiler, and `{compiler}` is not installed"
    return "" if importlib.util.find_spec("triton") else "it needs triton, which is not installed"


def _kind(problem: Problem) -> Hashable:
    """What a kernel is compiled for besides sizes: the kinds of the bias's terms, without their values."""
    if problem.open or problem.bias is None:
        return None
    causal = (part.window is not None for part in problem.bias.parts if isinstance(part, Causal))
    return (*sorted(problem.kinds), *causal)


@lru_cache(maxsize=64)
def _compiled(kind: Hashable) -> Any:
    """FlexAttention, to be compiled for one kind of problem.

    Each kind has its own compiled function: with one for all, torch stops compiling after a few shapes and falls back
    to materializing all scores. The recompiles allowed per kind are for strides.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, **_OWN_LIMIT)  # type: ignore[call-overload]


@lru_cache(maxsize=32)
def _block_mask(bias: Bias, shape: AttentionShape, device: torch.device) -> Any:
    """torch's block mask of a bias; cached, since making one visits all pairs of blocks."""
    from torch.nn.attention.flex_attention import and_masks, create_block_mask

    rules = [_rule(part, shape, device) for part in bias.parts]
    rows = shape.batch if any(isinstance(part, Lengths) for part in bias.parts) else None
    made = partial(create_block_mask, and_masks(*rules), rows, None, shape.queries, shape.keys, device=device)
    return made(_compile=True) if device.type == "cuda" else made()  # uncompiled, all pairs are materialized


def _rule(part: Bias, shape: AttentionShape, device: torch.device) -> Any:
    """A term as FlexAttention's `mask_mod` of (row, head, query, key)."""
    if isinstance(part, Causal):
        shift, window = part.shift(shape), part.window
        if window is None:
            return lambda b, h, q, k: q + shift >= k
        return lambda b, h, q, k: (q + shift >= k) & (q + shift - k < window)
    if isinstance(part, Lengths):
        keys = torch.tensor(part.counts, device=device)
        queries = torch.tensor(part.queries or (shape.queries,) * shape.batch, device=device)
        return lambda b, h, q, k: (k < keys[b]) & (q < queries[b])
    if isinstance(part, Blocks):
        owner_q, owner_k = _owners(part.bounds, device), _owners(part.key_bounds, device)
        return lambda b, h, q, k: owner_q[q] == owner_k[k]
    assert isinstance(part, SpaceTime)
    return _window_rule(part, device)


def _owners(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """The sequence that each token belongs to."""
    sizes = torch.tensor(bounds, device=device).diff()
    return torch.arange(len(sizes), device=device).repeat_interleave(sizes)


def _window_rule(part: SpaceTime, device: torch.device) -> Any:
    _, height, width = part.grid
    t, h, w = (torch.tensor(part.sees(axis), device=device).T.contiguous() for axis in range(3))  # (2, positions)

    def rule(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        seen = (t[0][q // (height * width)] <= k // (height * width)) & (
            k // (height * width) < t[1][q // (height * width)]
        )
        seen = (
            seen
            & (h[0][q // width % height] <= k // width % height)
            & (k // width % height < h[1][q // width % height])
        )
        return seen & (w[0][q % width] <= k % width) & (k % width < w[1][q % width])

    return rule
