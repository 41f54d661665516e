"""`product`, an attention backend for training on short packed sequences: two matrix products and a softmax.

For the 64 patches of a picture or the ten tokens of a caption, torch's fused CPU kernel takes three to six times as
long, forward and backward. All scores of sequences of one length are materialized.

Try it: `attend(q, k, v, bias=Blocks(bounds), backend="product")` with `use_dispatch(DispatchSettings([Product()]))`
"""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import Tensor

from studio.attention import Backend, Blocks, Problem


class Product(Backend):
    """The unfused formula, batched over sequences of one length."""

    name = "product"

    def refuses(self, problem: Problem) -> list[str]:
        """Any bias but `Blocks`, and grouped heads."""
        reasons = []
        if problem.bias is not None and not isinstance(problem.bias, Blocks):
            reasons.append("it supports only Blocks")
        if problem.heads != problem.kv_heads:
            reasons.append("it does not support grouped-query attention")
        return reasons

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        q, k, v = ((each * factor).transpose(1, 2) for each, factor in ((q, scale), (k, 1), (v, 1)))  # (B, H, T, D)
        if not isinstance(problem.bias, Blocks):
            return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)
        made = []
        for rows in _runs(problem.bias):
            (first, last), (k_first, k_last) = ((each[0][0], each[-1][1]) for each in zip(*rows, strict=True))
            queries = q[0, :, first:last].unflatten(1, (len(rows), -1))  # (H, n, L, D)
            counts = [b - a for _, (a, b) in rows]
            most = max(counts)
            if min(counts) == most:
                keys, values = (each[0, :, k_first:k_last].unflatten(1, (len(rows), -1)) for each in (k, v))
                scores = queries @ keys.transpose(2, 3)
            else:  # padded with the following keys, which are masked
                at = torch.arange(most, device=q.device) + torch.tensor([[a] for _, (a, _) in rows], device=q.device)
                masked = torch.arange(most, device=q.device) >= torch.tensor(counts, device=q.device)[:, None]
                keys, values = (each[0][:, at.clamp(max=each.shape[2] - 1)] for each in (k, v))  # (H, n, most, D)
                scores = (queries @ keys.transpose(2, 3)).masked_fill(masked[:, None], -torch.inf)
            made.append((scores.softmax(-1) @ values).flatten(1, 2))
        return torch.cat(made, 1)[None].transpose(1, 2)


def _runs(bias: Blocks) -> list[list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Runs of neighbouring sequences with one number of queries: (query bounds, key bounds) of each sequence."""
    spans = (tuple(pairwise(b)) for b in (bias.bounds, bias.key_bounds))
    return [list(run) for _, run in groupby(zip(*spans, strict=True), lambda pair: pair[0][1] - pair[0][0])]
