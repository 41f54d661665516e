"""Diffusion samplers (ODE solvers) as pure functions of tensors: one step for many rows, each at its own noise levels.

A sampler has no state between calls, so that requests at different positions, step counts and methods share a forward
pass (a scheduler of diffusers keeps its state in an object: diffusers #3672). All work for any x = alpha x_0 + sigma e:
that of Ho et al. 2020 (alpha² + sigma² = 1, see noise.py), and rectified flow, x_s = (1 - s) x_0 + s e with a model
that predicts v = e - x_0 (Liu et al. 2022). The noise schedule of rectified flow is `noise_levels`.

Try it: `noise_levels(20)` gives the 21 levels from 0.999 down to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAIN_STEPS = 1000
"""The model's timesteps are 0 to 999: `int(1000 s)` at noise level s, as in diffusers."""


def noise_levels(steps: int, shift: float = 1.0, begin: float = 1.0) -> tuple[float, ...]:
    """The noise schedule of rectified flow: `steps + 1` levels from 0.999 down to 0, evenly spaced before the shift.

    Image-to-image starts from less noise: all levels are multiplied by `begin`, from 0 to 1.

    Bitwise equal to diffusers' `DPMSolverMultistepScheduler` with `use_flow_sigmas`, so that timesteps never differ. A
    shift above 1 spends more steps on high noise (Esser et al. 2024, equation 23).
    """
    s = np.flip(1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1))[:-1]
    return (*(begin * shift * s / (1 + (shift - 1) * s)).tolist(), 0.0)


def timestep(s: float) -> int:
    """The model's timestep at noise level `s`: a whole number from 0 to 999."""
    return int(s * TRAIN_STEPS)


@dataclass(frozen=True)
class Level:
    """Noise levels of rows: x = alpha x_0 + sigma e. Both (B, 1, 1, 1); sigma 0 is a clean sample."""

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def flow(cls, s: Tensor) -> Level:
        """The level `s` of rectified flow."""
        return cls(1 - s, s)

    @property
    def log_snr(self) -> Tensor:
        """The papers' lambda, half of the log signal-to-noise ratio: (B, 1, 1, 1)."""
        return torch.log(self.alpha) - torch.log(self.sigma)

    def where(self, condition: Tensor, other: float) -> Level:
        """These levels where the condition (B, 1, 1, 1) holds, elsewhere alpha = sigma = `other`."""
        plain = torch.full_like(self.sigma, other)
        return Level(torch.where(condition, self.alpha, plain), torch.where(condition, self.sigma, plain))


@dataclass(frozen=True)
class History:
    """A previous step of the rows, for multistep samplers. Where there was none, sigma is 0 and the rest any finite
    value.

    Attributes:
        level: the noise level at which that step began.
        x0: the clean sample that the model predicted there, (B, C, H, W).
        x: the noisy sample at which that step began, corrected if its sampler has a corrector, (B, C, H, W).
    """

    level: Level
    x0: Tensor
    x: Tensor


@dataclass(frozen=True)
class StepInputs:
    """The inputs of one sampler step for many rows; levels are (B, 1, 1, 1), the rest (B, C, H, W).

    Attributes:
        x: the noisy sample at level `now`.
        x0: the clean sample that the model predicts.
        now, next: the levels that this step goes from and to.
        before: the previous step.
        earlier: the step before that; only for `unic`.
        noise: standard normal noise; only for `ddpm`.
        bound: `ddpm` and `ddim` clip x_0 to [-bound, bound]; None does not clip.
        large_variance: `ddpm` uses beta as its variance, not the posterior's (Ho et al. 2020, section 3.2).
    """

    x: Tensor
    x0: Tensor
    now: Level
    next: Level
    before: History
    earlier: History | None = None
    noise: Tensor | None = None
    bound: float | None = None
    large_variance: bool = False

    @property
    def bounded(self) -> Tensor:
        """x0 clipped to the bound."""
        return self.x0 if self.bound is None else self.x0.clamp(-self.bound, self.bound)


def euler(step: StepInputs) -> Tensor:
    """First order: the predicted x_0 and e at the next level. Returns (B, C, H, W).

    For rectified flow this is Euler's method; for Ho et al. it is Euler's method for x / alpha over sigma / alpha.
    """
    return _first_order(step, step.x0)


def ddim(step: StepInputs) -> Tensor:
    """DDIM at eta 0 (Song et al. 2021, equation 12): `euler` with x_0 clipped. Returns (B, C, H, W)."""
    e = (step.x - step.now.alpha * step.x0) / step.now.sigma
    return step.next.alpha * step.bounded + step.next.sigma * e


def ddpm(step: StepInputs) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2 and equation 7) between any two levels. Returns (B, C, H, W).

    The last step adds no noise.
    """
    assert step.noise is not None
    now, after = step.now.sigma.square(), step.next.sigma.square()  # 1 - alpha-bar
    alpha = (step.now.alpha / step.next.alpha).square()  # the paper's alpha_t
    mean = step.next.alpha * (1 - alpha) / now * step.bounded + alpha.sqrt() * after / now * step.x
    variance = 1 - alpha if step.large_variance else (1 - alpha) * after / now
    return mean + torch.where(step.next.sigma > 0, variance.sqrt(), 0.0) * step.noise


def _first_order(step: StepInputs, x0: Tensor) -> Tensor:
    """(sigma'/sigma) x + alpha' (1 - exp(-h)) x0, in a form that is defined at sigma' = 0."""
    ratio = step.next.sigma / step.now.sigma
    return ratio * step.x + (step.next.alpha - ratio * step.now.alpha) * x0


def dpmpp_2m(step: StepInputs) -> Tensor:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, algorithm 2). Returns (B, C, H, W).

    First order at a row's first step, and at its last, where the next level is 0. Also UniP-2 of Zhao et al. 2023 with
    B(h) = exp(h) - 1.
    """
    second = (step.before.level.sigma > 0) & (step.next.sigma > 0)
    # For first order rows: levels that keep the logarithms finite.
    h = step.next.where(second, 0.5).log_snr - step.now.log_snr
    h_before = step.now.log_snr - step.before.level.where(second, 0.5).log_snr
    slope = torch.where(second, 0.5 * h / torch.where(second, h_before, torch.ones_like(h)), torch.zeros_like(h))
    return _first_order(step, step.x0 + slope * (step.x0 - step.before.x0))


def unic(step: StepInputs) -> Tensor:
    """UniC-2, the corrector of UniPC, with B(h) = exp(h) - 1 (Zhao et al. 2023, algorithm 1): a corrected `x`.

    It repeats the previous step to level `now` with the model's prediction there. First order at a row's second step; a
    row's first step is not corrected. Returns (B, C, H, W), from which the next step starts.
    """
    assert step.earlier is not None
    corrects, second = step.before.level.sigma > 0, step.earlier.level.sigma > 0
    now, before, earlier = (  # in float64: the differences below cancel for small steps
        Level(each.alpha.double(), each.sigma.double()).where(known, other)
        for each, known, other in (
            (step.now, corrects, 0.5),
            (step.before.level, corrects, 0.6),
            (step.earlier.level, second, 0.7),
        )
    )
    h = now.log_snr - before.log_snr
    # The papers' phi and b at -h, for the predicted x_0
    phi_1 = torch.expm1(-h)
    phi_2 = -phi_1 / h - 1
    phi_3 = -phi_2 / h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    r = (earlier.log_snr - before.log_snr) / h
    rho_1 = torch.where(second, (b_1 - b_2) / (1 - r), 0.0)
    rho_2 = torch.where(second, b_1 - rho_1, 0.5)
    x, before_x0, earlier_x0 = step.x, step.before.x0, step.earlier.x0
    x0 = before_x0 + (rho_1 / r).to(x) * (earlier_x0 - before_x0) + rho_2.to(x) * (step.x0 - before_x0)
    corrected = _first_order(StepInputs(step.before.x, x0, step.before.level, step.now, step.before), x0)
    return torch.where(corrects, corrected, x)


Sampler = Callable[[StepInputs], Tensor]

SAMPLERS: dict[str, Sampler] = {"dpmpp-2m": dpmpp_2m, "euler": euler}
"""Samplers for any noise levels."""

PIXEL_SAMPLERS: dict[str, Sampler] = {**SAMPLERS, "ddim": ddim, "ddpm": ddpm, "unipc": dpmpp_2m}
"""Samplers for alpha² + sigma² = 1. UniPC's predictor, UniP-2, is DPM-Solver++(2M); its corrector runs first."""

CORRECTORS: dict[str, Sampler] = {"unipc": unic}
"""Correctors, applied to a step's `x` before its sampler."""
