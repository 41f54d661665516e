"""`reference`: the attention formula over a materialized mask. Slow; all other backends are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.attention.backend import Backend
from studio.attention.exact import exact
from studio.attention.problem import Problem

MOST_SCORES = 1 << 30


class Reference(Backend):
    """Every bias, every device, gradients of any order; memory grows with the square of the tokens."""

    name = "reference"

    def refuses(self, problem: Problem) -> list[str]:
        """Only scores over 1 GiB."""
        size = problem.batch * problem.heads * problem.queries * problem.keys * max(4, problem.dtype.itemsize)
        if size > MOST_SCORES:
            return [f"it needs {size >> 20:,} MiB for the scores; the limit is {MOST_SCORES >> 20:,} MiB"]
        return []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        bias = problem.bias
        if bias is None:
            return exact(q, k, v, scale, None, None)
        at = (torch.arange(problem.queries, device=q.device), torch.arange(problem.keys, device=q.device))
        rows = slice(0, problem.batch)
        return exact(q, k, v, scale, bias.visible(rows, *at, problem.shape), bias.added(rows, *at))
