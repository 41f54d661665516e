"""A pixel DDPM's samplers against diffusers' stateful ones, on the same noise and a net whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from studio.devices import torch_setup

torch_setup.prepare()

from studio.diffusion.noise import NoiseSchedule, config  # noqa: E402  (needs prepare)
from studio.diffusion.samplers import PIXEL_SAMPLERS  # noqa: E402
from studio_diffusion.pixel import CLEAN, PixelDiffusion, PixelRow  # noqa: E402

STOCK: dict[str, Any] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}
SHAPE = (3, 4, 4)


class Net(torch.nn.Module):
    """A smooth stand-in for the net: depends on the picture and on the time."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(num_class_embeds=None, in_channels=3, sample_size=4)

    def forward(self, x: Tensor, t: Tensor, labels: None = None) -> Any:
        return SimpleNamespace(sample=torch.sin(2 * x) + t.view(-1, 1, 1, 1) / 1000 * x)


def generator_of(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + step)


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def ours(stock: dict[str, Any], requests: list[tuple[Tensor, str, int]]) -> list[Tensor]:
    """Pictures of requests (noise, sampler, steps) that share their steps as long as they last."""
    model = PixelDiffusion(Net(), NoiseSchedule(stock), None)
    times = [model.times(steps) for _, _, steps in requests]
    rows = [
        PixelRow(x, None, 1.0, sampler, CLEAN, when[0]) for (x, sampler, _), when in zip(requests, times, strict=True)
    ]
    for step in range(max(steps for _, _, steps in requests)):
        drawn = torch.randn(SHAPE, generator=generator_of(step))
        moving = [i for i, (_, _, steps) in enumerate(requests) if step < steps]
        moved = model.step([replace(rows[i].advance(times[i][step + 1]), noise=drawn) for i in moving])
        for i, row in zip(moving, moved, strict=True):
            rows[i] = row
    return [row.x for row in rows]


def theirs(stock: dict[str, Any], x: Tensor, sampler: str, steps: int) -> Tensor:
    scheduler = STOCK[sampler].from_config(stock)
    scheduler.set_timesteps(steps)
    net, sample = Net(), x[None]
    if sampler == "euler":  # it steps x / alpha
        sample = sample / scheduler.alphas_cumprod[int(scheduler.timesteps[0])] ** 0.5
    for step, t in enumerate(scheduler.timesteps):
        drawn = {"generator": generator_of(step)} if sampler == "ddpm" else {}
        said = net(scheduler.scale_model_input(sample, t), t).sample
        sample = scheduler.step(said, t, sample, **drawn).prev_sample
    return sample[0]


def agrees(mine: Tensor, stock: Tensor, within: float) -> None:
    """Within a part of the stock picture's largest value."""
    assert float((mine - stock).abs().max()) <= within * max(1.0, float(stock.abs().max()))


def test_every_sampler_is_compared() -> None:
    assert set(STOCK) == set(PIXEL_SAMPLERS)


@pytest.mark.parametrize("sampler", sorted(STOCK))
@settings(max_examples=12)
@given(
    steps=st.one_of(st.sampled_from([1, 2, 3, 10, 50]), st.integers(1, 120)),
    schedule=st.sampled_from(["linear", "cosine"]),
    prediction=st.sampled_from(["epsilon", "v", "x0"]),
)
def test_equals_stock(sampler: str, steps: int, schedule: str, prediction: str) -> None:
    if sampler == "ddim":  # stock goes 1000 // steps down, whatever its own times are
        steps = next(n for n in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125) if n >= steps)
    assume(steps not in (61, 103))  # stock makes one step more of them, at the time -1
    stock = config(schedule, prediction)
    (mine,) = ours(stock, [(noise(steps), sampler, steps)])
    # Stock Euler divides by alpha, which is 5e-5 at the first time of the cosine schedule: its digits, not ours.
    # `ddpm` takes 1 - alpha of neighbouring times, which leaves float32 few digits: a quarter of one level of 255.
    within = {"euler": 1e-2, "ddpm": 2e-3}.get(sampler, 2e-4)
    agrees(mine, theirs(stock, noise(steps), sampler, steps), within)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_follows_the_config(spacing: str, variance: str, clip: bool) -> None:
    stock = {**config("linear", "epsilon"), "timestep_spacing": spacing, "variance_type": variance, "clip_sample": clip,
             "clip_sample_range": 0.7}  # fmt: skip
    steps = 1000 if (spacing, variance, clip) == ("leading", "fixed_small", True) else 50
    if spacing == "trailing":
        steps = 1000 if variance == "fixed_large" else 40  # the last time is then 0, where stock adds no noise
    (mine,) = ours(stock, [(noise(0), "ddpm", steps)])
    agrees(mine, theirs(stock, noise(0), "ddpm", steps), 1e-3)


def test_betas_that_end_at_pure_noise() -> None:
    stock = {**config("linear", "v"), "rescale_betas_zero_snr": True}
    for sampler in sorted(STOCK):
        (mine,) = ours(stock, [(noise(1), sampler, 10)])
        assert bool(mine.isfinite().all())
        if sampler in ("ddpm", "ddim"):
            agrees(mine, theirs(stock, noise(1), sampler, 10), 2e-3)


@settings(max_examples=30)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(sorted(STOCK)), st.integers(1, 7)), min_size=2, max_size=5
    )
)
def test_rows_do_not_touch(requests: list[tuple[int, str, int]]) -> None:
    """Requests of unlike samplers and step counts in one batch come out as alone."""
    stock = config("cosine", "v")
    asked = [(noise(seed), sampler, steps) for seed, sampler, steps in requests]
    for together, one in zip(ours(stock, asked), asked, strict=True):
        torch.testing.assert_close(together, ours(stock, [one])[0], rtol=1e-5, atol=1e-5)


@cache
def converging() -> tuple[dict[str, Any], Tensor]:
    """A configuration, and where its path ends."""
    stock = {**config("linear", "v"), "clip_sample": False}
    return stock, ours(stock, [(noise(0), "unipc", 1000)])[0]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "euler", "unipc"])
def test_more_steps_converge(sampler: str) -> None:
    """The exact path is approached as steps grow; the second-order methods are nearer at equal steps."""
    stock, exact = converging()
    errors = [float((ours(stock, [(noise(0), sampler, steps)])[0] - exact).abs().mean()) for steps in (8, 40, 200)]
    assert errors[0] > errors[1] > errors[2]
    if sampler in ("dpmpp-2m", "unipc"):
        assert errors[1] < float((ours(stock, [(noise(0), "ddim", 40)])[0] - exact).abs().mean())
