"""Attention by its formula over a materialized mask, and the rules for non-finite inputs, which hold for all backends.

Scores and weights are computed in float32 at least. Masked keys and values never affect an output, whatever they are:

- a query whose keys are all masked, or whose scores are all -inf, gets zeros;
- a score of NaN or +inf (from a NaN or infinite query or key) makes the query's whole row NaN;
- a NaN or infinite value makes its element NaN in the rows of all queries that attend to it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None, added: Tensor | None) -> Tensor:
    """Attention that materializes all scores.

    `q` is (B, Q, H, D), `k` (B, K, G, D), `v` (B, K, G, E) with H a multiple of G; `visible` (bool) and `added`
    broadcast to (B, H, Q, K). Returns (B, Q, H, E).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    k, v = (each.repeat_interleave(q.shape[2] // k.shape[2], dim=2).to(dtype) for each in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(dtype) * scale, k)
    if added is not None:
        scores = scores + added
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    most = scores.detach().amax(-1, keepdim=True)
    weights = (scores - most.masked_fill(most == -torch.inf, 0)).exp()
    total = weights.sum(-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1)
    finite = v.isfinite()
    if finite.all():
        return torch.einsum("bhqk,bkhe->bqhe", weights, v).to(q.dtype)
    seen = torch.ones_like(scores) if visible is None else visible.expand_as(scores).to(dtype)
    reached = torch.einsum("bhqk,bkhe->bqhe", seen, (~finite).to(dtype)) > 0
    out = torch.einsum("bhqk,bkhe->bqhe", weights, v.masked_fill(~finite, 0))
    return out.masked_fill(reached, torch.nan).to(q.dtype)
