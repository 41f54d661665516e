"""`chunked`: every bias on every device, block by block, in memory that grows with the tokens and not their square.

`plan` cuts the work into boxes of queries and the keys they see; each box is one call of torch's fused kernel (online
softmax over the keys), with a mask only where the box is not wholly seen. What a bias rules out is never computed. In
training nothing of a block is kept: its backward pass computes it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from studio.attention.backend import Backend
from studio.attention.backends.masks import as_floats
from studio.attention.backends.sdpa import flash_cpu, math
from studio.attention.exact import exact
from studio.attention.plan import Block, blocks, grids
from studio.attention.problem import Problem

_MOST_SCORES = 64 << 20  # elements that one block of a kernel that holds all scores may have


class Chunked(Backend):
    """Boxes of queries against the boxes of keys that they see."""

    name = "chunked"

    def refuses(self, problem: Problem) -> list[str]:
        """Only a bias that is itself trained."""
        if any(
            part.tensor.requires_grad
            for part in (problem.bias.parts if problem.bias else ())
            if hasattr(part, "tensor")
        ):
            return ["it makes no gradient for the bias's tensor"]
        return []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        if problem.grad:
            return _Attend.apply(q, k, v, problem, scale)  # type: ignore[no-untyped-call, no-any-return]
        return _forward(q, k, v, problem, scale)


def attend_exactly(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    """The same by the textbook's formula in each block: what calls with non-finite numbers are answered with."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    grid_q, grid_k = grids(problem.bias, problem.shape)
    most = max(1, _MOST_SCORES // (problem.batch * problem.heads * problem.keys))
    for block in blocks(problem.bias, problem.shape, q.device, most):
        taken = _taken(q, k, v, block, grid_q, grid_k)
        _put(out, block, grid_q, exact(*taken, scale, block.visible, block.added))
    return out


def _forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    grid_q, grid_k = grids(problem.bias, problem.shape)
    for block in blocks(problem.bias, problem.shape, q.device, _most(problem)):
        _put(out, block, grid_q, _one(*_taken(q, k, v, block, grid_q, grid_k), block, scale))
    return out


def _most(problem: Problem) -> int | None:
    """Queries a block: any number where the kernel does not hold the scores."""
    if problem.head_dim == problem.value_dim and problem.dtype != torch.float64:
        return None
    if problem.head_dim == problem.value_dim and problem.device.type == "cpu":
        return None
    return max(1, _MOST_SCORES // (problem.batch * problem.heads * problem.keys))


def _one(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float) -> Tensor:
    """One block, (B, T, H, D) as ever."""
    mask = as_floats(block.visible, block.added, q.dtype)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    if q.shape[3] != v.shape[3]:
        made = math(q, k, v, mask, False, scale)
    elif q.device.type == "cpu":
        made = flash_cpu(q, k, v, mask, False, scale)
    else:
        grouped = q.shape[1] != k.shape[1]
        made = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return made.transpose(1, 2)


def _taken(
    q: Tensor, k: Tensor, v: Tensor, block: Block, grid_q: tuple[int, ...], grid_k: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries, keys and values (rows, tokens, heads, head_dim); a view where it can be one."""
    return (
        _box(q, block.rows, block.q, grid_q),
        _box(k, block.rows, block.k, grid_k),
        _box(v, block.rows, block.k, grid_k),
    )


def _box(x: Tensor, rows: slice, box: tuple[slice, ...], grid: tuple[int, ...]) -> Tensor:
    if len(grid) == 1:
        return x[rows, box[0]]
    wide: Tensor = x.unflatten(1, grid)  # type: ignore[no-untyped-call]
    return wide[(rows, *box)].flatten(1, 3)


def _put(out: Tensor, block: Block, grid: tuple[int, ...], made: Tensor, *, add: bool = False) -> None:
    """Write a block's result to where its tokens are, or add it to what is there."""
    if len(grid) == 1:
        place = out[block.rows, block.q[0]]
    else:
        place = out.unflatten(1, grid)[(block.rows, *block.q)]  # type: ignore[no-untyped-call]
        made = made.unflatten(1, place.shape[1:4])  # type: ignore[no-untyped-call]
    if add:
        place.add_(made)
    else:
        place.copy_(made)


class _Attend(torch.autograd.Function):
    """Keeps q, k and v alone; the backward pass goes through the blocks again, one at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.problem, ctx.scale = problem, scale
        return _forward(q, k, v, problem, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        problem: Problem = ctx.problem
        grid_q, grid_k = grids(problem.bias, problem.shape)
        sums = tuple(torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in (q, k, v))
        for block in blocks(problem.bias, problem.shape, q.device, _most(problem)):
            taken = tuple(each.detach().requires_grad_() for each in _taken(q, k, v, block, grid_q, grid_k))
            with torch.enable_grad():
                made = _one(taken[0], taken[1], taken[2], block, ctx.scale)
            parts = torch.autograd.grad(made, taken, _box(grad, block.rows, block.q, grid_q))
            keys = block._replace(q=block.k)
            for whole, part, where, grid in zip(
                sums, parts, (block, keys, keys), (grid_q, grid_k, grid_k), strict=True
            ):
                _put(whole, where, grid, part, add=True)
        return *(whole.to(each.dtype) for whole, each in zip(sums, (q, k, v), strict=True)), None, None
