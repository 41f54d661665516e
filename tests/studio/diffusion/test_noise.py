"""Noise schedules against the papers' formulas, and what a net says against what it is said of."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.devices import torch_setup

torch_setup.prepare()

from studio.diffusion.noise import PREDICTIONS, SCHEDULES, NoiseSchedule, config  # noqa: E402  (needs prepare)


def test_linear_is_that_of_ho_et_al() -> None:
    bar, product = NoiseSchedule(config("linear", "epsilon")).alphas_cumprod, 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert float(bar[t]) == pytest.approx(product, rel=1e-3)


def test_cosine_is_that_of_nichol_and_dhariwal() -> None:
    bar = NoiseSchedule(config("cosine", "v")).alphas_cumprod

    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in range(999):  # the last beta is held to 0.999
        assert float(bar[t]) == pytest.approx(f(t + 1) / f(0), rel=2e-3)
    assert float(bar[999]) < 1e-6


schedules = st.sampled_from(sorted(SCHEDULES))
predictions = st.sampled_from(sorted(PREDICTIONS))


@given(schedules, predictions, st.integers(0, 900), st.integers(0, 99), st.floats(0.1, 50))
def test_a_target_means_its_picture_and_weights_its_error(
    schedule: str, prediction: str, time: int, seed: int, gamma: float
) -> None:
    """A right answer gives x_0 back; a wrong one costs min(SNR, gamma) times its error in x_0, in all predictions."""
    rng = torch.Generator().manual_seed(seed)
    x0, e, wrong = (torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    noise = NoiseSchedule(config(schedule, prediction))
    at = noise.level(torch.tensor([time, time // 2]))
    x, target = at.alpha * x0 + at.sigma * e, noise.target(x0, e, at)
    torch.testing.assert_close(noise.x0(x, target, at), x0, rtol=1e-3, atol=1e-3)
    error = noise.x0(x, target + wrong, at) - noise.x0(x, target, at)
    snr = (at.alpha / at.sigma).square().clamp(max=gamma)
    torch.testing.assert_close(noise.weight(at, gamma) * wrong.square(), snr * error.square(), rtol=1e-3, atol=1e-6)


@given(schedules, st.integers(1, 1000), st.sampled_from(["leading", "trailing", "linspace"]))
def test_times_fall(schedule: str, steps: int, spacing: str) -> None:
    times = NoiseSchedule({**config(schedule, "v"), "timestep_spacing": spacing}).timesteps(steps)
    assert len(times) == steps
    assert times[0] < 1000
    assert times[-1] >= 0
    assert all(a > b for a, b in pairwise(times))
    if spacing == "trailing":
        assert times[0] == 999


@pytest.mark.parametrize(
    "bad",
    [
        {"prediction_type": "flow"}, {"thresholding": True}, {"variance_type": "learned_range"},
        {"timestep_spacing": "uneven"},
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(bad: dict[str, object]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        NoiseSchedule({**config("linear", "epsilon"), **bad})
