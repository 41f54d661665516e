"""The predicted clean sample equals what the schedulers themselves say, where they say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from studio.diffusion.guest import Record
from studio.diffusion.predicted import predicted_sample

from .tiny import diffusers


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_it_equals_the_scheduler(name: str, kind: str) -> None:
    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    scheduler: Any = getattr(diffusers, name)(prediction_type=kind, **options)
    scheduler.set_timesteps(5)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps[:4]:
        output = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(int(timestep)))
        scheduler.scale_model_input(sample, timestep)
        if name.startswith("DPM"):
            if scheduler.step_index is None:
                scheduler._init_step_index(timestep)
            expected = scheduler.convert_model_output(output, sample=sample)
            made = scheduler.step(output, timestep, sample)
        else:
            made = scheduler.step(output, timestep, sample)
            expected = made.pred_original_sample
        record = Record(1, made.prev_sample, vars(scheduler), torch.zeros(1), (output, timestep, sample))
        assert torch.allclose(predicted_sample(scheduler, record), expected, atol=1e-4)
        sample = made.prev_sample


def test_flow_matching() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sample = noise
    for timestep in scheduler.timesteps:
        made = scheduler.step(noise - clean, timestep, sample).prev_sample
        record = Record(1, made, vars(scheduler), torch.zeros(1), (noise - clean, timestep, sample))
        assert torch.allclose(predicted_sample(scheduler, record), clean, atol=1e-5)
        sample = made


def test_an_unknown_parametrisation_shows_the_latents() -> None:
    latents = torch.ones(1, 2)
    record = Record(1, latents, {}, torch.zeros(1), (torch.ones(1, 3), 5, torch.ones(1, 2)))
    assert predicted_sample(diffusers.DDIMScheduler(), record) is latents
