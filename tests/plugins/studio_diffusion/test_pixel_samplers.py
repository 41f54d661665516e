"""The samplers of a pixel DDPM against diffusers' stateful ones, on the same noise and a net whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from studio import torch_setup

torch_setup.prepare()

from studio_diffusion.noise import PREDICTIONS, SCHEDULES, NoiseSchedule, config  # noqa: E402  (needs prepare)
from studio_diffusion.pixel import CLEAN, PixelDiffusion, Row  # noqa: E402
from studio_diffusion.samplers import PIXEL_SAMPLERS  # noqa: E402

STOCK: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}
SHAPE = (3, 4, 4)


class Net(torch.nn.Module):
    """A smooth stand-in for the net: depends on the picture and on the time."""

    device, dtype = torch.device("cpu"), torch.float32

    class config:  # noqa: N801  (as diffusers has it)
        num_class_embeds, in_channels, sample_size = None, 3, 4

    def forward(self, x: Tensor, t: Tensor, labels: None = None) -> Any:
        answer = torch.sin(2 * x) + t.view(-1, 1, 1, 1) / 1000 * x

        class Answer:
            sample = answer

        return Answer


def noise_of(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 + step))


def ours(x: Tensor, sampler: str, stock: dict[str, Any], steps: int) -> Tensor:
    model = PixelDiffusion(Net(), NoiseSchedule(stock), None)
    first, *others = (*model.schedule.timesteps(steps), CLEAN)
    row = Row(x, None, 1.0, sampler, CLEAN, first)
    for step, t_next in enumerate(others):
        from dataclasses import replace

        (row,) = model.step([replace(row.on(t_next), noise=noise_of(step))])
    return row.x


def theirs(x: Tensor, sampler: str, stock: dict[str, Any], steps: int) -> Tensor:
    kind, more = STOCK[sampler]
    scheduler = kind.from_config({**stock, **more})
    scheduler.set_timesteps(steps)
    given = {
        step: {"generator": torch.Generator().manual_seed(1000 + step)} if sampler == "ddpm" else {}
        for step in range(steps)
    }
    net, sample = Net(), x[None]
    if sampler == "euler":
        sample = (
            sample
            / float(1 - scheduler.alphas_cumprod[int(scheduler.timesteps[0])]) ** 0.5
            * scheduler.init_noise_sigma
        )
    for step, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, t)
        sample = scheduler.step(net(scaled, t).sample, t, sample, **given[step]).prev_sample
    return sample[0]
