"""A scheduler that lets the host own the denoising loop of a diffusers pipeline, and the supported schedulers.

Try it: ``pytest tests/plugins/studio_video/test_stock_schedules.py``
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio import devices
from studio.errors import WeightsError

SCHEDULERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": (False,), "stochastic_sampling": (False,)},
    "CogVideoXDDIMScheduler": {"prediction_type": ("epsilon", "v_prediction", "sample"),
                               "timestep_spacing": ("leading", "trailing", "linspace")},
}  # fmt: skip
"""The schedulers that the sampler `euler` equals, and the config values for which it does."""
_REPLACEMENTS = {
    "UniPCMultistepScheduler": "a FlowMatchEulerDiscreteScheduler whose `shift` is its `flow_shift`",
    "DPMSolverMultistepScheduler": "a FlowMatchEulerDiscreteScheduler whose `shift` is its `flow_shift`",
    "CogVideoXDPMScheduler": "a CogVideoXDDIMScheduler of the same settings",
}
"""Unsupported solvers of published models, and a supported scheduler for the same network."""


class SingleStepScheduler:
    """Replaces a pipeline's scheduler: it has the timesteps of the real one, and takes a single step or none.

    Attributes:
        schedule: (alpha, sigma, timestep) of each step of the real one, ending with (1, 0, 0); set by `set_timesteps`.
        landings: (alpha, sigma) that the real one's steps go to; set by `set_timesteps`.
        timesteps: the timesteps of the pipeline's loop.
    """

    order, init_noise_sigma = 1, 1.0

    def __init__(self, real: Any, device: torch.device) -> None:
        self._real, self.config, self._device = real, real.config, device
        self.schedule: tuple[tuple[float, float, float], ...] = ()
        self.landings: tuple[tuple[float, float], ...] = ()
        self.timesteps = self.sigmas = torch.zeros(0)
        self._count, self._at = 0, (1.0, 0.0, 0.0)

    def at(self, level: tuple[float, float, float] | None, steps: int = 0) -> None:
        """Let the pipeline take one step at a level; without a level none, and read `steps` timesteps instead."""
        self._at, self._count = level or self._at, steps
        numbers = torch.tensor([] if level is None else [level[2], level[1], 0.0])
        numbers = devices.upload(numbers, self._device)  # pipelines pass the timestep to the network as it is
        self.timesteps, self.sigmas = numbers[:1], numbers[1:]

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None,
                      sigmas: Any = None, mu: float | None = None) -> None:  # fmt: skip
        """Called by the pipeline; reads the real scheduler's timesteps if `at` asked for them."""
        if not self._count:
            return
        real = deepcopy(self._real)
        if mu is None or not getattr(real.config, "use_dynamic_shifting", False):
            mu = None
        settings = {"mu": mu} if mu is not None else {}
        if sigmas is not None:
            even = np.linspace(1.0, 1 / self._count, self._count)  # as in LTX, for this number of steps
            real.set_timesteps(sigmas=even, device=device, **settings)
        else:
            real.set_timesteps(self._count, device=device, **settings)
        self.schedule = _levels(real, self._count)
        self.landings = _landings(real, self.schedule)

    def set_begin_index(self, index: int = 0) -> None:
        """Called by pipelines; ignored, since there is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample, unchanged."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """The x_0 that the model output predicts, float32."""
        alpha, sigma, _ = self._at
        output, x = model_output.float(), sample.float()
        kind = self.config.get("prediction_type", "flow_prediction")
        if kind == "v_prediction":
            return (alpha * x - sigma * output,)
        if kind == "epsilon":
            return ((x - sigma * output) / max(alpha, 1e-6),)
        return (output,) if kind == "sample" else (x - sigma * output,)


def _is_flow(real: Any) -> bool:
    """Whether it is rectified flow: x = (1 - s) x_0 + s e."""
    return type(real).__name__.startswith("FlowMatch")


def check_solver(folder: Path, kind: str) -> None:
    """Raise WeightsError for an unsupported class of diffusers' schedulers."""
    if kind not in SCHEDULERS:
        instead = _REPLACEMENTS.get(kind)
        hint = f"put {instead} into its `scheduler` and model_index.json" if instead else "use another model"
        message = f"`{folder}` has a `{kind}`, which is not supported; supported: {', '.join(SCHEDULERS)}"
        raise WeightsError(folder, message, hint=hint)


def check_scheduler(folder: Path, real: Any) -> None:
    """Raise WeightsError, which names the setting, for an unsupported scheduler."""
    kind = type(real).__name__
    check_solver(folder, kind)
    for name, known in SCHEDULERS[kind].items():
        found = real.config.get(name, known[0])
        if found not in known:
            raise WeightsError(folder, f"the `{kind}` of `{folder}` has {name} {found!r}; known: "
                               f"{', '.join(map(repr, known))}", hint="use a model with another schedule")  # fmt: skip


def _levels(real: Any, count: int) -> tuple[tuple[float, float, float], ...]:
    """(alpha, sigma, timestep) of `count` steps of a scheduler whose timesteps are set, and the clean end."""
    times = [float(t) for t in real.timesteps][:count]  # DDIM may append timestep -1
    if _is_flow(real):  # sigma is s
        found = [(1 - s, s, t) for s, t in zip(map(float, real.sigmas), times, strict=False)]
    else:
        bars = [float(real.alphas_cumprod[int(t)]) for t in times]
        found = [(bar**0.5, (1 - bar) ** 0.5, t) for bar, t in zip(bars, times, strict=True)]
    return (*found, (1.0, 0.0, 0.0))


def _landings(real: Any, schedule: tuple[tuple[float, float, float], ...]) -> tuple[tuple[float, float], ...]:
    """(alpha, sigma) that each step of a scheduler goes to: the next level; for DDIM that of T / steps earlier, which
    differs where T is not a multiple of the number of steps.
    """
    if _is_flow(real):
        return tuple((alpha, sigma) for alpha, sigma, _ in schedule[1:])
    gap = real.config.num_train_timesteps // real.num_inference_steps
    bars = [float(real.alphas_cumprod[int(t) - gap] if t >= gap else real.final_alpha_cumprod)
            for _, _, t in schedule[:-1]]  # fmt: skip
    return tuple((bar**0.5, (1 - bar) ** 0.5) for bar in bars)
