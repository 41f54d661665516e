"""Noise schedules of diffusion in pixels: x_t = alpha_t x_0 + sigma_t e at t = 0 … T-1, as Ho et al. 2020 have it.

The numbers are those of a stock scheduler's config (diffusers), so that its folders load and save as they are. What a
net predicts (the noise e, v = alpha e - sigma x_0, or x_0 itself) belongs to the schedule.

Try it: `NoiseSchedule(config("cosine", "v")).timesteps(4)` gives (999, 749, 499, 249)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from studio_diffusion.samplers import Level

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Ho et al. 2020, section 4 (beta from 1e-4 to 0.02), and Nichol and Dhariwal 2021, equation 17; diffusers' names."""

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
"""What the net says of x_t; diffusers' names."""

DDIM = ("DDIMScheduler", "DDIMParallelScheduler")
CLASSES = ("DDPMScheduler", "DDPMParallelScheduler", *DDIM)
"""Stock schedulers whose configs say all that the samplers here need. Others have other times, levels or nets."""

MOST_TIMES = 100_000


def config(schedule: str, prediction: str) -> dict[str, Any]:
    """The stock config of a schedule and a prediction, by the names of `SCHEDULES` and `PREDICTIONS`.

    Timesteps are `trailing`: few steps then begin at pure noise (Lin et al. 2024, section 3.3).
    """
    stock = DDPMScheduler(
        beta_schedule=SCHEDULES[schedule], prediction_type=PREDICTIONS[prediction], timestep_spacing="trailing"
    )
    return _plain(stock)


def _plain(scheduler: DDPMScheduler) -> dict[str, Any]:
    """Its config without the notes that diffusers makes for itself, one of which undoes later changes of defaults."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


class NoiseSchedule:
    """The levels of one stock config, and what the net's answer means at each.

    Whatever of the config changes a picture is as in diffusers' own `DDPMScheduler` and `DDIMScheduler`, or is refused.

    Attributes:
        config: the stock config, whole.
        alphas_cumprod: float32 (T,), the paper's alpha-bar.
        prediction: `epsilon`, `v_prediction` or `sample`.
        clip: what samplers of the first papers bound x_0 by, or None.
        large_variance: whether `ddpm` takes beta for its variance.
        final_alpha_is_one: whether the last step of `ddim` goes to a clean picture.
    """

    def __init__(self, stock: dict[str, Any]) -> None:
        """Take a config of one of `CLASSES`. Raises ValueError, which names what no sampler here knows."""
        kind = stock.get("_class_name", CLASSES[0])
        if kind not in CLASSES:
            raise ValueError(f"_class_name is {kind!r}; known: {', '.join(CLASSES)}")
        count = stock.get("num_train_timesteps", 1000)
        if type(count) is not int or not 1 <= count <= MOST_TIMES:
            raise ValueError(f"num_train_timesteps is {count!r}; known: 1 to {MOST_TIMES:,}")
        self.final_alpha_is_one = kind not in DDIM or bool(stock.get("set_alpha_to_one", True))
        scheduler = DDPMScheduler.from_config(stock)
        self.config = _plain(scheduler)
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        # Betas rescaled to end at pure noise leave 0, where nothing of x_0 can be told from epsilon (as stock has it).
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
        """T, the steps that the net was trained for."""
        return len(self.alphas_cumprod)

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The `steps` times that a picture is made at, falling, spaced as the config says. `steps` is in 1 … T."""
        scheduler = DDPMScheduler.from_config(self.config)
        scheduler.set_timesteps(steps)
        return tuple(scheduler.timesteps.tolist()[:steps])  # trailing by 61 and others, stock adds the time -1

    def after(self, times: Sequence[int], position: int, sampler: str) -> int:
        """The time that the step at `position` goes to; `times` end with that of a clean picture, below 0.

        It is the next one, but for `ddim` T / steps earlier, as stock DDIM has it: `linspace` times lie further apart.
        Without `set_alpha_to_one` its last step goes to the time 0 and not to a clean picture.
        """
        if sampler != "ddim":
            return times[position + 1]
        after = times[position] - len(self) // (len(times) - 1)
        return after if after >= 0 else times[-1] if self.final_alpha_is_one else 0

    def level(self, t: Tensor) -> Level:
        """Levels at integer times (B,); a time below 0 is the clean picture."""
        bar = self.alphas_cumprod.to(t.device)[t.clamp(min=0)].where(t >= 0, 1.0)[:, None, None, None]
        return Level(bar.sqrt(), (1 - bar).sqrt())

    def x0(self, x: Tensor, said: Tensor, at: Level) -> Tensor:
        """The clean picture that the net's answer `said` means for `x`; all (B, C, H, W)."""
        if self.prediction == "epsilon":
            return (x - at.sigma * said) / at.alpha
        return at.alpha * x - at.sigma * said if self.prediction == "v_prediction" else said

    def target(self, x0: Tensor, e: Tensor, at: Level) -> Tensor:
        """What the net is to say of alpha x_0 + sigma e; all (B, C, H, W)."""
        if self.prediction == "epsilon":
            return e
        return at.alpha * e - at.sigma * x0 if self.prediction == "v_prediction" else x0

    def weight(self, at: Level, gamma: float) -> Tensor:
        """Weights (B, 1, 1, 1) of the squared error in `target` that make it min(SNR, gamma) times that in x_0 (Hang et
        al. 2023).
        """
        snr = (at.alpha / at.sigma).square()
        unit = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction]
        return snr.clamp(max=gamma) / unit
