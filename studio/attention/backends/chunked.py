"""`chunked`: every bias on every device, block by block, in memory that is linear in the number of tokens.

`plan` cuts the scores into boxes of queries and of the keys that they attend to. Each box is one call of torch's fused
kernel (online softmax over the keys), with a mask only where the box is partly masked. Pairs that a bias masks are
skipped. In training no activations of a block are kept: the backward pass recomputes them.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import groupby, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from studio.attention.backend import Backend
from studio.attention.backends.masks import as_floats, floats_of
from studio.attention.backends.sdpa import computes_as_a_cpu, flash_cpu, math
from studio.attention.bias import Blocks
from studio.attention.exact import exact
from studio.attention.plan import ScoreBlock, TensorCache, blocks, grids
from studio.attention.problem import Problem

_MOST_SCORES = 64 << 20  # scores in one block, for kernels that materialize them


class Chunked(Backend):
    """Boxes of queries against the boxes of keys that they attend to."""

    name = "chunked"

    def refuses(self, problem: Problem) -> list[str]:
        """Only a bias that requires a gradient."""
        if any(
            part.tensor.requires_grad
            for part in (problem.bias.parts if problem.bias else ())
            if hasattr(part, "tensor")
        ):
            return ["it has no gradient for the bias's tensor"]
        return []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        if problem.grad:
            return _ChunkedAttention.apply(q, k, v, problem, scale)  # type: ignore[no-untyped-call, no-any-return]
        return _forward(q, k, v, problem, scale)


def attend_exactly(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    """The same by the exact formula in each block, for calls with non-finite inputs."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    boxes = _Boxes(q, k, v, problem)
    most = max(1, _MOST_SCORES // (problem.batch * problem.heads * problem.keys))
    for block in blocks(problem.bias, problem.shape, q.device, most):
        queries, keys, values = (each.transpose(1, 2) for each in boxes.take(block))  # (B, T, H, D)
        made = exact(queries, keys, values, scale, block.visible, block.added)
        _put(out, block.rows, block.q, boxes.grid_q, made.transpose(1, 2))
    return out


def _forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    if isinstance(problem.bias, Blocks) and problem.batch == 1 and _most(problem) is None:
        for queries, keys, count in _runs(problem.bias):
            taken = [
                x[0, at].reshape(count, -1, *x.shape[2:]).transpose(1, 2)  # (sequences, H, T, D)
                for x, at in ((q, queries), (k, keys), (v, keys))
            ]
            made = _one(taken[0], taken[1], taken[2], None, scale)
            out[0, queries] = made.transpose(1, 2).flatten(0, 1)
        return out
    boxes, masks = _Boxes(q, k, v, problem), TensorCache()
    for block in blocks(problem.bias, problem.shape, q.device, _most(problem)):
        made = _one(*boxes.take(block), _mask(block, masks, q.dtype), scale)
        _put(out, block.rows, block.q, boxes.grid_q, made)
    return out


@lru_cache(maxsize=64)
def _runs(bias: Blocks) -> tuple[tuple[slice, slice, int], ...]:
    """Runs of neighbouring sequences of equal lengths: (queries, keys, number of sequences) of each.

    A run is one batched call, which saves launches on a GPU.
    """
    spans = zip(pairwise(bias.bounds), pairwise(bias.key_bounds), strict=True)
    runs = [list(run) for _, run in groupby(spans, lambda pair: [last - first for first, last in pair])]
    return tuple(
        (slice(run[0][0][0], run[-1][0][1]), slice(run[0][1][0], run[-1][1][1]), len(run))
        for run in runs if all(first < last for first, last in run[0])
    )  # fmt: skip


def _mask(block: ScoreBlock, masks: TensorCache, dtype: torch.dtype) -> Tensor | None:
    """A block's mask as floats; blocks of one pattern share it."""
    if block.pattern is None or block.visible is None:
        return as_floats(block.visible, block.added, dtype)
    return masks.get(block.pattern, partial(floats_of, block.visible, dtype))


def _most(problem: Problem) -> int | None:
    """The most queries per block; None where the kernel does not materialize the scores."""
    if problem.head_dim == problem.value_dim and problem.dtype != torch.float64:
        return None
    if problem.head_dim == problem.value_dim and computes_as_a_cpu(problem.device):
        return None
    return max(1, _MOST_SCORES // (problem.batch * problem.heads * problem.keys))


def _one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One block, in the kernels' layout (B, H, T, D)."""
    if q.shape[3] != v.shape[3]:
        return math(q, k, v, mask, False, scale)
    if computes_as_a_cpu(q.device):
        return flash_cpu(q, k, v, mask, False, scale)
    grouped = q.shape[1] != k.shape[1]
    made = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    # GPU kernels differ in their output for a query whose keys are all masked; here it is zeros.
    return made if mask is None else made.masked_fill((mask == -torch.inf).all(-1, keepdim=True), 0)


class _Boxes:
    """Cuts blocks out of queries, keys and values, as views where possible.

    Keys of a grid box are copied into contiguous memory, head by head; boxes of one height and width share a copy.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> None:
        self._given = q, k, v
        self.grid_q, self.grid_k = grids(problem.bias, problem.shape)
        self._place: object = None
        self._buffers = [x.new_empty(0) for x in (k, v)]
        self._slabs: list[Tensor] = []

    def take(self, block: ScoreBlock) -> tuple[Tensor, Tensor, Tensor]:
        """A block's queries, keys and values, (rows, heads, tokens, head_dim)."""
        q, k, v = self._given
        queries = _box(q, block.rows, block.q, self.grid_q)
        if len(self.grid_k) == 1:
            return queries, _box(k, block.rows, block.k, self.grid_k), _box(v, block.rows, block.k, self.grid_k)
        time, *area = block.k
        if (block.rows, area) != self._place:
            whole = (slice(0, self.grid_k[0]), *area)
            self._place = (block.rows, area)
            self._slabs = [self._copied(n, _wide(x, block.rows, whole, self.grid_k)) for n, x in enumerate((k, v))]
        size = prod(each.stop - each.start for each in area)
        keys, values = (x[:, :, time.start * size : time.stop * size] for x in self._slabs)
        return queries, keys, values

    def _copied(self, which: int, x: Tensor) -> Tensor:
        """A copy into a reused buffer: page faults in fresh memory cost as much as the copy."""
        if self._buffers[which].numel() < x.numel():
            self._buffers[which] = x.new_empty(x.numel())
        slab: Tensor = self._buffers[which][: x.numel()].view(x.shape)
        return slab.copy_(x).flatten(2, 4)


def _box(x: Tensor, rows: slice, box: tuple[slice, ...], grid: tuple[int, ...]) -> Tensor:
    """The tokens of a box, (rows, heads, tokens, head_dim), of (B, T, H, D)."""
    if len(grid) == 1:
        return x[rows, box[0]].transpose(1, 2)
    return _wide(x, rows, box, grid).flatten(2, 4)


def _wide(x: Tensor, rows: slice, box: tuple[slice, ...], grid: tuple[int, ...]) -> Tensor:
    """The same before its axes are flattened: (rows, heads, t, h, w, head_dim), a view."""
    wide: Tensor = x.unflatten(1, grid)  # type: ignore[no-untyped-call]
    return wide[(rows, *box)].permute(0, 4, 1, 2, 3, 5)


def _put(
    out: Tensor, rows: slice, box: tuple[slice, ...], grid: tuple[int, ...], made: Tensor, *, add: bool = False
) -> None:
    """Write, or add, a block's (rows, H, t, D) to its tokens in (B, T, H, D)."""
    if len(grid) == 1:
        place = out[rows, box[0]].transpose(1, 2)
    else:
        place = out.unflatten(1, grid)[(rows, *box)].permute(0, 4, 1, 2, 3, 5)  # type: ignore[no-untyped-call]
        made = made.unflatten(2, place.shape[2:5])  # type: ignore[no-untyped-call]
    if add:
        place.add_(made)
    else:
        place.copy_(made)


class _ChunkedAttention(torch.autograd.Function):
    """Saves only q, k and v; the backward pass recomputes the blocks one at a time."""

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
        boxes, masks = _Boxes(q, k, v, problem), TensorCache()
        sums = tuple(torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in (q, k, v))
        for block in blocks(problem.bias, problem.shape, q.device, _most(problem)):
            taken = tuple(each.detach().requires_grad_() for each in boxes.take(block))
            with torch.enable_grad():
                made = _one(taken[0], taken[1], taken[2], _mask(block, masks, q.dtype), ctx.scale)
            parts = torch.autograd.grad(made, taken, _box(grad, block.rows, block.q, boxes.grid_q))
            places = ((block.q, boxes.grid_q), (block.k, boxes.grid_k), (block.k, boxes.grid_k))
            for whole, part, place in zip(sums, parts, places, strict=True):
                _put(whole, block.rows, *place, part, add=True)
        return *(whole.to(each.dtype) for whole, each in zip(sums, (q, k, v), strict=True)), None, None
