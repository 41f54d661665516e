"""Differentiable augmentation (Zhao et al. 2020): colour, translation and cutout, for real and generated pictures.

The discriminator sees only augmented pictures, so that it cannot memorize a small data set. The generator does not
learn the augmentations, since both kinds of pictures have them.

Try it: `augment(torch.rand(4, 3, 64, 64), torch.Generator().manual_seed(0)).shape`
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Random colour, translation and cutout per picture; differentiable.

    Args:
        x: (B, C, H, W).
        rng: a generator on the CPU.

    Returns:
        (B, C, H, W); padding and holes are 0.
    """
    return cutout(translate(colour(x, rng), rng), rng)


def _uniform(x: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """A random number per picture, (B, 1, 1, 1)."""
    return torch.empty(len(x), 1, 1, 1).uniform_(low, high, generator=rng).to(x)


def _whole(x: Tensor, low: int, high: int, rng: torch.Generator) -> Tensor:
    """A random whole number in [low, high] per picture, (B, 1)."""
    return torch.randint(low, high + 1, (len(x), 1), generator=rng).to(x.device)


def colour(x: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness shifted by up to 0.5, saturation scaled by 0 to 2, contrast by 0.5 to 1.5."""
    x = x + _uniform(x, -0.5, 0.5, rng)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(x, 0.0, 2.0, rng)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _uniform(x, 0.5, 1.5, rng)


def translate(x: Tensor, rng: torch.Generator, share: float = 0.125) -> Tensor:
    """Translated by whole pixels, up to `share` of the side in each direction."""
    height, width = x.shape[2:]
    most = int(height * share + 0.5), int(width * share + 0.5)
    padded = F.pad(x, (most[1], most[1], most[0], most[0]))  # (B, C, H + 2h, W + 2w)
    rows = torch.arange(height, device=x.device) + _whole(x, 0, 2 * most[0], rng)  # (B, H)
    columns = torch.arange(width, device=x.device) + _whole(x, 0, 2 * most[1], rng)  # (B, W)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def cutout(x: Tensor, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """A square hole of `share` of the side, which may be partly outside."""
    height, width = x.shape[2:]
    half = int(height * share / 2), int(width * share / 2)
    down = (torch.arange(height, device=x.device) - _whole(x, 0, height, rng)).abs() < half[0]  # (B, H)
    across = (torch.arange(width, device=x.device) - _whole(x, 0, width, rng)).abs() < half[1]  # (B, W)
    return x * ~(down[:, None, :, None] & across[:, None, None, :])
