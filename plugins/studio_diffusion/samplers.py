"""Samplers of rectified flow as pure functions of tensors: one step for many rows, each at its own noise level.

The state of a sampler is its arguments: nothing is kept between calls, so that requests at different positions, step
counts and methods share a forward pass (the stock libraries keep it in an object: diffusers #3672). Symbols as in the
papers: x_s = (1 - s) x_0 + s e, and a model that predicts v = e - x_0 (Liu et al. 2022).

Try it: `noise_levels(20)` gives the 21 levels from 0.999 down to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAIN_STEPS = 1000
"""The model's clock runs from 0 to this; it is told `int(1000 s)`, as the stock noise schedule does."""


def noise_levels(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Noise levels of `steps` steps: `steps + 1` numbers falling from 0.999 to 0, even before the shift.

    Equal to the last bit to diffusers' `DPMSolverMultistepScheduler` with `use_flow_sigmas`, so that the model's clock
    never differs. A shift above 1 spends more steps on high noise (Esser et al. 2024, equation 23).
    """
    s = np.flip(1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1))[:-1]
    return (*(shift * s / (1 + (shift - 1) * s)).tolist(), 0.0)


def clock(s: float) -> int:
    """What the model is told of noise level `s`: a whole number from 0 to 999."""
    return int(s * TRAIN_STEPS)


@dataclass(frozen=True)
class Move:
    """One step of many rows. Each field's first axis is the row; levels are (B, 1, 1, 1), the rest (B, C, H, W).

    Attributes:
        x: the noisy latents at level `s`.
        x0: what the model now takes for the clean latents, x - s v.
        x0_before: the same of the step before; anything finite at a row's first step.
        s, s_next, s_before: noise levels now, after this step, and at the step before (0: there was none).
    """

    x: Tensor
    x0: Tensor
    x0_before: Tensor
    s: Tensor
    s_next: Tensor
    s_before: Tensor


def euler(m: Move) -> Tensor:
    """First order: go along v to the next level. Returns (B, C, H, W)."""
    return m.x0 + m.s_next / m.s * (m.x - m.x0)


def dpmpp_2m(m: Move) -> Tensor:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, algorithm 2), with alpha = 1 - s and sigma = s.

    First order at a row's first step and at its last, where the next level is 0. Returns (B, C, H, W).
    """
    second = (m.s_before > 0) & (m.s_next > 0)
    ones = torch.full_like(m.s, 0.5)  # where the order is one, levels that keep the logarithms finite

    def log_snr(s: Tensor) -> Tensor:
        return torch.log1p(-s) - torch.log(s)

    s_next, s_before = torch.where(second, m.s_next, ones), torch.where(second, m.s_before, ones)
    h, h_before = log_snr(s_next) - log_snr(m.s), log_snr(m.s) - log_snr(s_before)
    slope = torch.where(second, 0.5 * h / torch.where(second, h_before, ones), torch.zeros_like(m.s))
    x0 = m.x0 + slope * (m.x0 - m.x0_before)
    # (s'/s) x - (1 - s') (exp(-h) - 1) x0, with exp(-h) = s' (1 - s) / ((1 - s') s), so that s' = 0 needs no limit
    ratio = m.s_next / m.s
    return ratio * m.x + ((1 - m.s_next) - ratio * (1 - m.s)) * x0


SAMPLERS: dict[str, Callable[[Move], Tensor]] = {"dpmpp-2m": dpmpp_2m, "euler": euler}
