"""Latents: truncated normal sampling, and interpolation.

Try it: `slerp(torch.randn(2, 100), torch.linspace(0, 1, 5)).norm(dim=1)`
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncated(count: int, width: int, bound: float, rng: torch.Generator) -> Tensor:
    """Truncated normal samples in [-bound, bound] (the truncation trick, Brock et al. 2019).

    By the inverse CDF, so that a seed's latents change continuously with the bound.

    Returns:
        (count, width) float32.
    """
    u = torch.rand(count, width, generator=rng, dtype=torch.float64) * 2 - 1  # (-1, 1)
    inside = math.erf(bound / math.sqrt(2))  # the probability within the bound
    return (math.sqrt(2) * torch.erfinv(u * inside)).float()


def slerp(stops: Tensor, way: Tensor) -> Tensor:
    """Spherical interpolation between waypoints (Shoemake 1985), with linear interpolation of lengths.

    Linear interpolation of high-dimensional normal latents passes through lengths that the model was not trained on.

    Args:
        stops: (K, D), K >= 2, none of which is 0.
        way: (T,), from 0, the first waypoint, to K - 1, the last.

    Returns:
        (T, D).
    """
    left, share = _leg(stops, way)
    a, b = stops[left], stops[left + 1]
    lengths = torch.lerp(a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True), share)
    a, b = (torch.nn.functional.normalize(each, dim=1) for each in (a, b))
    angle = torch.acos((a * b).sum(1, keepdim=True).clamp(-1, 1))  # (T, 1)
    near = angle < 1e-3  # nearly parallel: linear, since the quotient is 0/0
    sine = torch.sin(angle).where(~near, torch.ones(()))
    first = (torch.sin((1 - share) * angle) / sine).where(~near, 1 - share)
    second = (torch.sin(share * angle) / sine).where(~near, share)
    return lengths * (first * a + second * b)


def lerp(stops: Tensor, way: Tensor) -> Tensor:
    """Linear interpolation between waypoints: (K, D) and (T,) as in `slerp`, to (T, D)."""
    left, share = _leg(stops, way)
    return torch.lerp(stops[left], stops[left + 1], share)


def _leg(stops: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """The waypoint before each point, (T,), and the fraction of the way to the next, (T, 1)."""
    left = way.long().clamp(0, len(stops) - 2)
    return left, (way - left)[:, None]
