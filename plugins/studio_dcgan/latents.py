"""Latents: normal ones within a bound, and ways between them. Knows nothing of models.

Try it: `slerp(torch.randn(2, 100), torch.linspace(0, 1, 5)).norm(dim=1)`
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncated(count: int, width: int, bound: float, rng: torch.Generator) -> Tensor:
    """Normal numbers given that none is further from 0 than `bound` (the truncation trick, Brock et al. 2019).

    By the inverse of the distribution, so that a seed's latents change steadily with the bound and stay alike.

    Returns:
        (count, width) float32.
    """
    u = torch.rand(count, width, generator=rng, dtype=torch.float64) * 2 - 1  # (-1, 1)
    inside = math.erf(bound / math.sqrt(2))  # the part of all that lies within the bound
    return (math.sqrt(2) * torch.erfinv(u * inside)).float()


def slerp(stops: Tensor, way: Tensor) -> Tensor:
    """Points on great circles from stop to stop (Shoemake 1985), their lengths going evenly from one to the other's.

    On a straight line high-dimensional normal latents would shrink half way to lengths that the model never met.

    Args:
        stops: (K, D), K >= 2, none of which is 0.
        way: (T,), each from 0, the first stop, to K - 1, the last.

    Returns:
        (T, D).
    """
    left, share = _leg(stops, way)
    a, b = stops[left], stops[left + 1]
    lengths = torch.lerp(a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True), share)
    a, b = (torch.nn.functional.normalize(each, dim=1) for each in (a, b))
    angle = torch.acos((a * b).sum(1, keepdim=True).clamp(-1, 1))  # (T, 1)
    near = angle < 1e-3  # there the straight line is the circle, and the quotient 0/0
    sine = torch.sin(angle).where(~near, torch.ones(()))
    first = (torch.sin((1 - share) * angle) / sine).where(~near, 1 - share)
    second = (torch.sin(share * angle) / sine).where(~near, share)
    return lengths * (first * a + second * b)


def between(stops: Tensor, way: Tensor) -> Tensor:
    """Points on straight lines from stop to stop: (K, D) and (T,) as in `slerp` to (T, D)."""
    left, share = _leg(stops, way)
    return torch.lerp(stops[left], stops[left + 1], share)


def _leg(stops: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """The stop before each point, (T,), and how far on to the next it is, (T, 1)."""
    left = way.long().clamp(0, len(stops) - 2)
    return left, (way - left)[:, None]
