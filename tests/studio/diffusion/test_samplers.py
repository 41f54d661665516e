"""Our samplers against diffusers' stateful ones, row by row, on a made-up model whose answers are known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from studio.devices import torch_setup

torch_setup.prepare()

from studio.diffusion.samplers import SAMPLERS, History, Level, StepInputs, noise_levels, timestep  # noqa: E402  (needs prepare)


def model(x: Tensor, s: float) -> Tensor:
    """A smooth stand-in for the net: depends on the latents and on the level."""
    return torch.sin(3 * x) + s * x


def move(x: Tensor, x0: Tensor, before: Tensor, s: Tensor, s_next: Tensor, s_before: Tensor) -> StepInputs:
    """A step of rectified flow."""
    return StepInputs(x, x0, Level.flow(s), Level.flow(s_next), History(Level.flow(s_before), before, x))


def ours(x: Tensor, steps: int, sampler: str) -> Tensor:
    """Run one row from noise to the end."""
    levels = noise_levels(steps)
    before, s_before = torch.zeros_like(x), 0.0
    for s, s_next in pairwise(levels):
        x0 = x - s * model(x, s)
        column = (torch.full((1, 1, 1, 1), value) for value in (s, s_next, s_before))
        x, before, s_before = SAMPLERS[sampler](move(x, x0, before, *column)), x0, s
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 20, 50, 333])
def test_dpmpp_2m_equals_diffusers(steps: int) -> None:
    from studio_diffusion.export import scheduler

    stock = scheduler()
    stock.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(steps))
    theirs = x.clone()
    for index, t in enumerate(stock.timesteps):
        theirs = stock.step(model(theirs, float(stock.sigmas[index])), t, theirs).prev_sample
    torch.testing.assert_close(ours(x, steps, "dpmpp-2m"), theirs, rtol=1e-4, atol=1e-5)
    assert [timestep(s) for s in noise_levels(steps)[:-1]] == stock.timesteps.tolist()
    torch.testing.assert_close(torch.tensor(noise_levels(steps)), stock.sigmas)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_more_steps_converge(sampler: str) -> None:
    """The exact path is approached as steps grow; the second-order method is nearer at equal steps."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = ours(x, 800, "dpmpp-2m")
    errors = [float((ours(x, steps, sampler) - exact).abs().mean()) for steps in (10, 40, 160)]
    assert errors[0] > errors[1] > errors[2]
    if sampler == "dpmpp-2m":
        assert errors[1] < float((ours(x, 40, "euler") - exact).abs().mean())


@given(steps=st.integers(1, 1000), shift=st.floats(0.25, 8))
def test_levels_fall_from_noise_to_zero(steps: int, shift: float) -> None:
    levels = noise_levels(steps, shift)
    assert len(levels) == steps + 1
    assert levels[-1] == 0
    assert 0 < levels[0] < 1
    assert all(low < high for high, low in pairwise(levels))
    assert 0 <= timestep(levels[0]) <= 999


@given(data=st.data(), sampler=st.sampled_from(sorted(SAMPLERS)))
def test_rows_do_not_touch(data: st.DataObject, sampler: str) -> None:
    """A row moves the same alone as among others at other levels and positions."""
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    rows = data.draw(st.integers(2, 5))
    x, x0, before = (torch.randn(rows, 2, 3, 3, generator=rng) for _ in range(3))
    triples = data.draw(
        st.lists(st.tuples(st.floats(0.05, 0.99), st.booleans(), st.booleans()), min_size=rows, max_size=rows)
    )
    s = torch.tensor([t[0] for t in triples])[:, None, None, None]
    s_next = s * torch.tensor([0.0 if t[1] else 0.8 for t in triples])[:, None, None, None]
    s_before = torch.tensor([0.0 if t[2] else (1 + t[0]) / 2 for t in triples])[:, None, None, None]
    together = SAMPLERS[sampler](move(x, x0, before, s, s_next, s_before))
    assert bool(together.isfinite().all())
    for i in range(rows):
        one = slice(i, i + 1)
        alone = SAMPLERS[sampler](move(x[one], x0[one], before[one], s[one], s_next[one], s_before[one]))
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)
