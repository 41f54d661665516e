"""DDPM noise schedules: x_t = alpha_t x_0 + sigma_t e at timesteps t = 0 … T-1 (Ho et al. 2020).

A schedule is read from the config of a diffusers scheduler and saved as one. Its prediction type (the noise e,
v = alpha e - sigma x_0, or x_0) belongs to it.

Try it: `NoiseSchedule(config("cosine", "v")).timesteps(4)` gives (999, 749, 499, 249)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from studio.diffusion.samplers import Level

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Ho et al. 2020, section 4 (beta from 1e-4 to 0.02), and Nichol and Dhariwal 2021, equation 17; diffusers' names."""

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
"""Prediction types; diffusers' names."""

DDIM = ("DDIMScheduler", "DDIMParallelScheduler")
CLASSES = ("DDPMScheduler", "DDPMParallelScheduler", *DDIM)
"""The supported diffusers schedulers. Others have other timesteps, noise levels or model outputs."""

MOST_TIMES = 100_000


def config(schedule: str, prediction: str) -> dict[str, Any]:
    """The diffusers config of a schedule and a prediction type, by the names of `SCHEDULES` and `PREDICTIONS`.

    Timestep spacing is `trailing`, so that few steps also start from pure noise (Lin et al. 2024, section 3.3).
    """
    scheduler = DDPMScheduler(
        beta_schedule=SCHEDULES[schedule], prediction_type=PREDICTIONS[prediction], timestep_spacing="trailing"
    )
    return _public(scheduler)


def _public(scheduler: DDPMScheduler) -> dict[str, Any]:
    """Its config without diffusers' private keys, one of which undoes later changes of defaults."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


class NoiseSchedule:
    """The noise levels of a scheduler config, and the conversion of model outputs at each.

    Settings that affect a picture work as in diffusers' `DDPMScheduler` and `DDIMScheduler`, or are rejected.

    Attributes:
        config: the whole scheduler config.
        alphas_cumprod: float32 (T,), the paper's alpha-bar.
        prediction: `epsilon`, `v_prediction` or `sample`.
        clip: the bound to which `ddpm` and `ddim` clip x_0, or None.
        large_variance: whether `ddpm` uses beta as its variance.
        final_alpha_is_one: whether the last step of `ddim` goes to a clean picture.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Use the config of one of `CLASSES`. Raises ValueError, which names an unsupported setting."""
        kind = config.get("_class_name", CLASSES[0])
        if kind not in CLASSES:
            raise ValueError(f"_class_name is {kind!r}; known: {', '.join(CLASSES)}")
        count = config.get("num_train_timesteps", 1000)
        if type(count) is not int or not 1 <= count <= MOST_TIMES:
            raise ValueError(f"num_train_timesteps is {count!r}; known: 1 to {MOST_TIMES:,}")
        self.final_alpha_is_one = kind not in DDIM or bool(config.get("set_alpha_to_one", True))
        scheduler = DDPMScheduler.from_config(config)
        self.config = _public(scheduler)
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        # Zero terminal SNR gives 0, where x_0 cannot be computed from epsilon; 2^-24 as in diffusers.
        self.alphas_cumprod = torch.where(self.alphas_cumprod == 0, 2.0**-24, self.alphas_cumprod)
        known = {
            "prediction_type": tuple(PREDICTIONS.values()), "thresholding": (False,),
            "timestep_spacing": ("leading", "trailing", "linspace"),
            "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
        }  # fmt: skip
        for name, values in known.items():
            if scheduler.config[name] not in values:
                raise ValueError(f"{name} is {scheduler.config[name]!r}; known: {', '.join(map(repr, values))}")
        self.prediction: str = scheduler.config.prediction_type
        self.large_variance: bool = scheduler.config.variance_type == "fixed_large"
        self.clip: float | None = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The `steps` timesteps of sampling, falling, with the config's spacing. `steps` is in 1 … T."""
        scheduler = DDPMScheduler.from_config(self.config)
        scheduler.set_timesteps(steps)
        return tuple(scheduler.timesteps.tolist()[:steps])  # diffusers may append timestep -1

    def after(self, times: Sequence[int], position: int, sampler: str) -> int:
        """The timestep that the step at `position` goes to; `times` end with that of a clean picture, below 0.

        It is the next one; for `ddim` T / steps earlier, as in diffusers, which differs with `linspace` spacing.
        Without `set_alpha_to_one` the last step of `ddim` goes to timestep 0, not to a clean picture.
        """
        if sampler != "ddim":
            return times[position + 1]
        after = times[position] - len(self) // (len(times) - 1)
        return after if after >= 0 else times[-1] if self.final_alpha_is_one else 0

    def level(self, t: Tensor) -> Level:
        """Noise levels at integer timesteps (B,); a timestep below 0 is the clean picture."""
        bar = self.alphas_cumprod.to(t.device)[t.clamp(min=0)].where(t >= 0, 1.0)[:, None, None, None]
        return Level(bar.sqrt(), (1 - bar).sqrt())

    def x0(self, x: Tensor, model_output: Tensor, at: Level) -> Tensor:
        """The x_0 that `model_output` predicts for `x`; all (B, C, H, W)."""
        if self.prediction == "epsilon":
            return (x - at.sigma * model_output) / at.alpha
        return at.alpha * x - at.sigma * model_output if self.prediction == "v_prediction" else model_output

    def target(self, x0: Tensor, e: Tensor, at: Level) -> Tensor:
        """The training target for alpha x_0 + sigma e; all (B, C, H, W)."""
        if self.prediction == "epsilon":
            return e
        return at.alpha * e - at.sigma * x0 if self.prediction == "v_prediction" else x0

    def weight(self, at: Level, gamma: float) -> Tensor:
        """Min-SNR loss weights (B, 1, 1, 1) of the squared error in `target`: it becomes min(SNR, gamma) times that in
        x_0 (Hang et al. 2023).
        """
        snr = (at.alpha / at.sigma).square()
        unit = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction]
        return snr.clamp(max=gamma) / unit
