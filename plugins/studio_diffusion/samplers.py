"""Samplers of diffusion as pure functions of tensors: one step for many rows, each at its own noise levels.

The state of a sampler is its arguments: nothing is kept between calls, so that requests at different positions, step
counts and methods share a forward pass (the stock libraries keep it in an object: diffusers #3672). All hold of any
x = alpha x_0 + sigma e: of Ho et al. 2020 (alpha² + sigma² = 1, see noise.py), and of rectified flow, x_s = (1 - s) x_0
+ s e with a model that predicts v = e - x_0 (Liu et al. 2022), whose levels are made here.

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


def noise_levels(steps: int, shift: float = 1.0, begin: float = 1.0) -> tuple[float, ...]:
    """Noise levels of `steps` steps: `steps + 1` numbers falling from 0.999 to 0, even before the shift.

    A picture that is not made of noise alone begins at a part of that, from 0 to 1: all are times `begin`.

    Equal to the last bit to diffusers' `DPMSolverMultistepScheduler` with `use_flow_sigmas`, so that the model's clock
    never differs. A shift above 1 spends more steps on high noise (Esser et al. 2024, equation 23).
    """
    s = np.flip(1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1))[:-1]
    return (*(begin * shift * s / (1 + (shift - 1) * s)).tolist(), 0.0)


def clock(s: float) -> int:
    """What the model is told of noise level `s`: a whole number from 0 to 999."""
    return int(s * TRAIN_STEPS)


@dataclass(frozen=True)
class Level:
    """Noise levels of rows: x = alpha x_0 + sigma e. Both (B, 1, 1, 1); sigma 0 is a clean picture."""

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def flow(cls, s: Tensor) -> Level:
        """The level `s` of rectified flow."""
        return cls(1 - s, s)

    @property
    def log_snr(self) -> Tensor:
        """The papers' lambda, half of the logarithm of the signal-to-noise ratio: (B, 1, 1, 1)."""
        return torch.log(self.alpha) - torch.log(self.sigma)

    def where(self, condition: Tensor, other: float) -> Level:
        """These levels where the condition (B, 1, 1, 1) holds, elsewhere that of alpha = sigma = `other`."""
        plain = torch.full_like(self.sigma, other)
        return Level(torch.where(condition, self.alpha, plain), torch.where(condition, self.sigma, plain))


@dataclass(frozen=True)
class Past:
    """What a row's earlier step leaves for later ones; anything finite, at a level of sigma 0, where there was none.

    Attributes:
        level: where that step began.
        x0: what the model then took for the clean picture, (B, C, H, W).
        x: where that step began, as corrected if its sampler corrects, (B, C, H, W).
    """

    level: Level
    x0: Tensor
    x: Tensor


@dataclass(frozen=True)
class Move:
    """One step of many rows. Each field's first axis is the row; levels are (B, 1, 1, 1), the rest (B, C, H, W).

    Attributes:
        x: the noisy picture or latents at level `now`.
        x0: what the model now takes for the clean ones.
        now, next: the levels that this step goes from and to.
        before: the step before this one.
        earlier: the step before that; only `unic` asks.
        noise: fresh standard normal numbers; only `ddpm` asks.
        bound: what `ddpm` and `ddim` hold x_0's values to, or None.
        large_variance: `ddpm` takes beta for its variance, not the posterior's (Ho et al. 2020, section 3.2).
    """

    x: Tensor
    x0: Tensor
    now: Level
    next: Level
    before: Past
    earlier: Past | None = None
    noise: Tensor | None = None
    bound: float | None = None
    large_variance: bool = False

    @property
    def bounded(self) -> Tensor:
        """x0 within the bound."""
        return self.x0 if self.bound is None else self.x0.clamp(-self.bound, self.bound)


def euler(m: Move) -> Tensor:
    """First order: keep what the model takes for x_0 and for e, at the next level. Returns (B, C, H, W).

    Of rectified flow this is Euler's method, of Ho et al. Euler's method for x / alpha over sigma / alpha.
    """
    return _towards(m, m.x0)


def ddim(m: Move) -> Tensor:
    """DDIM without noise (Song et al. 2021, equation 12 at eta 0): `euler` with x_0 bounded. Returns (B, C, H, W)."""
    e = (m.x - m.now.alpha * m.x0) / m.now.sigma
    return m.next.alpha * m.bounded + m.next.sigma * e


def ddpm(m: Move) -> Tensor:
    """The first sampler (Ho et al. 2020, algorithm 2 and equation 7), between any two levels. Returns (B, C, H, W).

    The last step, to a clean picture, adds no noise.
    """
    assert m.noise is not None
    now, after = m.now.sigma.square(), m.next.sigma.square()  # 1 - alpha-bar
    alpha = (m.now.alpha / m.next.alpha).square()  # the paper's alpha_t
    mean = m.next.alpha * (1 - alpha) / now * m.bounded + alpha.sqrt() * after / now * m.x
    variance = 1 - alpha if m.large_variance else (1 - alpha) * after / now
    return mean + torch.where(m.next.sigma > 0, variance.sqrt(), 0.0) * m.noise


def _towards(m: Move, x0: Tensor) -> Tensor:
    """(sigma'/sigma) x + alpha' (1 - exp(-h)) x0, written so that sigma' = 0 needs no limit."""
    ratio = m.next.sigma / m.now.sigma
    return ratio * m.x + (m.next.alpha - ratio * m.now.alpha) * x0


def dpmpp_2m(m: Move) -> Tensor:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, algorithm 2). Returns (B, C, H, W).

    First order at a row's first step and at its last, where the next level is 0. It is UniP-2 with B(h) = exp(h) - 1
    of Zhao et al. 2023 as well.
    """
    second = (m.before.level.sigma > 0) & (m.next.sigma > 0)
    # Where the order is one: levels that keep the logarithms finite.
    h = m.next.where(second, 0.5).log_snr - m.now.log_snr
    h_before = m.now.log_snr - m.before.level.where(second, 0.5).log_snr
    slope = torch.where(second, 0.5 * h / torch.where(second, h_before, torch.ones_like(h)), torch.zeros_like(h))
    return _towards(m, m.x0 + slope * (m.x0 - m.before.x0))


def unic(m: Move) -> Tensor:
    """UniC-2, the corrector of UniPC, with B(h) = exp(h) - 1 (Zhao et al. 2023, algorithm 1): a better `m.x`.

    From where the step before began, it goes to level `now` again, this time knowing what the model says there. Of
    order 1 at a row's second step; the first is left as it is. Returns (B, C, H, W); the next step begins there.
    """
    assert m.earlier is not None
    corrects, second = m.before.level.sigma > 0, m.earlier.level.sigma > 0
    now, before, earlier = (  # in float64: small steps leave few digits of the differences below
        Level(each.alpha.double(), each.sigma.double()).where(known, other)
        for each, known, other in (
            (m.now, corrects, 0.5),
            (m.before.level, corrects, 0.6),
            (m.earlier.level, second, 0.7),
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
    x0 = m.before.x0 + (rho_1 / r).to(m.x) * (m.earlier.x0 - m.before.x0) + rho_2.to(m.x) * (m.x0 - m.before.x0)
    corrected = _towards(Move(m.before.x, x0, m.before.level, m.now, m.before), x0)
    return torch.where(corrects, corrected, m.x)


Sampler = Callable[[Move], Tensor]

SAMPLERS: dict[str, Sampler] = {"dpmpp-2m": dpmpp_2m, "euler": euler}
"""Those of any levels."""

PIXEL_SAMPLERS: dict[str, Sampler] = {**SAMPLERS, "ddim": ddim, "ddpm": ddpm, "unipc": dpmpp_2m}
"""Those of alpha² + sigma² = 1. UniPC's predictor, UniP-2, is DPM-Solver++(2M); its corrector goes first."""

CORRECTORS: dict[str, Sampler] = {"unipc": unic}
"""What betters a step's `x` before its sampler moves on."""
