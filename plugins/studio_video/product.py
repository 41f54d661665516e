"""`product`, an attention backend for training on short packed sequences: two matrix products and a softmax.

On a CPU torch's fused kernel takes three to six times as long as these, forward and back, for the 64 patches of a
picture or the ten tokens of a caption: it is made for long rows. The scores of all sequences of one length are held in
memory. Knows nothing of the model.

Try it: `attend(q, k, v, bias=Blocks(bounds), backend="product")` with `lending(Serving([Product()]))`
"""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import Tensor

from studio.attention import Backend, Blocks, Problem


class Product(Backend):
    """All scores of sequences of one length at once."""

    name = "product"

    def refuses(self, problem: Problem) -> list[str]:
        """Any bias but `Blocks`, and grouped heads."""
        reasons = []
        if problem.bias is not None and not isinstance(problem.bias, Blocks):
            reasons.append("it serves no bias but Blocks")
        if problem.heads != problem.kv_heads:
            reasons.append("it serves no grouped heads")
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
            else:  # padded with what lies behind, which nobody sees
                at = torch.arange(most, device=q.device) + torch.tensor([[a] for _, (a, _) in rows], device=q.device)
                unseen = torch.arange(most, device=q.device) >= torch.tensor(counts, device=q.device)[:, None]
                keys, values = (each[0][:, at.clamp(max=each.shape[2] - 1)] for each in (k, v))  # (H, n, most, D)
                scores = (queries @ keys.transpose(2, 3)).masked_fill(unseen[:, None], -torch.inf)
            made.append((scores.softmax(-1) @ values).flatten(1, 2))
        return torch.cat(made, 1)[None].transpose(1, 2)


def _runs(bias: Blocks) -> list[list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Neighbouring sequences with equally many queries: (bounds of queries, bounds of keys) each."""
    spans = (tuple(pairwise(b)) for b in (bias.bounds, bias.key_bounds))
    return [list(run) for _, run in groupby(zip(*spans, strict=True), lambda pair: pair[0][1] - pair[0][0])]
