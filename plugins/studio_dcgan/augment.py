"""Differentiable augmentation (Zhao et al. 2020): colour, translation and cutout, for real and made pictures alike.

The discriminator never sees a picture as it is, so that it cannot learn a small set by heart, and the generator learns
none of the changes, since both kinds go through them. Knows nothing of models.

Try it: `augment(torch.rand(4, 3, 64, 64), torch.Generator().manual_seed(0)).shape`
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each picture with a colour, a place and a hole of its own; gradients pass through.

    Args:
        x: (B, C, H, W).
        rng: a generator on the CPU.

    Returns:
        (B, C, H, W); what moved in from outside, and the hole, are 0.
    """
    return cutout(translate(colour(x, rng), rng), rng)


def _uniform(x: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """One number a picture, (B, 1, 1, 1)."""
    return torch.empty(len(x), 1, 1, 1).uniform_(low, high, generator=rng).to(x)


def _whole(x: Tensor, low: int, high: int, rng: torch.Generator) -> Tensor:
    """One whole number of [low, high] a picture, (B, 1)."""
    return torch.randint(low, high + 1, (len(x), 1), generator=rng).to(x.device)


def colour(x: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness moved by up to 0.5, saturation by a factor of 0 to 2, contrast of 0.5 to 1.5."""
    x = x + _uniform(x, -0.5, 0.5, rng)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(x, 0.0, 2.0, rng)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _uniform(x, 0.5, 1.5, rng)


def translate(x: Tensor, rng: torch.Generator, share: float = 0.125) -> Tensor:
    """Moved by up to `share` of the side each way, to the pixel."""
    height, width = x.shape[2:]
    most = int(height * share + 0.5), int(width * share + 0.5)
    padded = F.pad(x, (most[1], most[1], most[0], most[0]))  # (B, C, H + 2h, W + 2w)
    rows = torch.arange(height, device=x.device) + _whole(x, 0, 2 * most[0], rng)  # (B, H)
    columns = torch.arange(width, device=x.device) + _whole(x, 0, 2 * most[1], rng)  # (B, W)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def cutout(x: Tensor, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """A square hole of `share` of the side, which may lie partly outside."""
    height, width = x.shape[2:]
    half = int(height * share / 2), int(width * share / 2)
    down = (torch.arange(height, device=x.device) - _whole(x, 0, height, rng)).abs() < half[0]  # (B, H)
    across = (torch.arange(width, device=x.device) - _whole(x, 0, width, rng)).abs() < half[1]  # (B, W)
    return x * ~(down[:, None, :, None] & across[:, None, None, :])
