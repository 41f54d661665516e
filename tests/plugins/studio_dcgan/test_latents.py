"""Latents within a bound, and ways lerp them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio_dcgan.latents import lerp, slerp, truncated


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(bound=st.floats(0.05, 4), seed=st.integers(0, 99))
def test_within_the_bound(bound: float, seed: int) -> None:
    z = truncated(4, 50, bound, rng(seed))
    assert z.shape == (4, 50)
    assert z.dtype == torch.float32
    assert z.abs().max() <= bound
    assert torch.equal(z, truncated(4, 50, bound, rng(seed)))


def test_the_distribution_is_the_normal_one_within_the_bound() -> None:
    """Against normal numbers of which those beyond the bound are drawn anew, as the paper does it."""
    normal = torch.randn(200_000, generator=rng(1))
    for bound in (0.5, 1.0, 4.0):
        kept = normal[normal.abs() <= bound].sort().values
        mine = truncated(1, len(kept), bound, rng(2))[0].sort().values
        middle = slice(len(kept) // 1000, -(len(kept) // 1000))
        assert (kept[middle] - mine[middle]).abs().max() < 0.05


def test_a_seeds_latents_keep_their_signs_and_order_with_the_bound() -> None:
    wide, narrow = (truncated(1, 100, bound, rng(5))[0] for bound in (4.0, 0.5))
    assert torch.equal(wide.sign(), narrow.sign())
    assert torch.equal(wide.argsort(), narrow.argsort())


@given(stops=st.integers(2, 5), frames=st.integers(2, 40), seed=st.integers(0, 99))
def test_walks_begin_and_end_at_the_ends_and_pass_the_stops(stops: int, frames: int, seed: int) -> None:
    z = torch.randn(stops, 20, generator=rng(seed))
    way = torch.linspace(0, stops - 1, frames)
    for walk in (slerp, lerp):
        made = walk(z, way)
        assert made.shape == (frames, 20)
        torch.testing.assert_close(made[[0, -1]], z[[0, -1]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(walk(z, torch.arange(float(stops))), z, rtol=1e-4, atol=1e-4)


def test_lengths_go_evenly_and_angles_too() -> None:
    z = torch.randn(2, 100, generator=rng())
    made = slerp(z, torch.linspace(0, 1, 11))
    lengths = made.norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(float(lengths[0]), float(lengths[-1]), 11))
    unit = made / lengths[:, None]
    angles = torch.acos((unit[1:] * unit[:-1]).sum(1))
    torch.testing.assert_close(angles, angles[:1].expand(10), rtol=1e-3, atol=1e-4)
    assert lerp(z, torch.tensor([0.5])).norm() < 0.85 * lengths[5]  # what the straight line would do


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_stops_in_one_direction(factor: float) -> None:
    a = torch.ones(1, 4)
    made = slerp(torch.cat([a, factor * a]), torch.tensor([0.25]))
    torch.testing.assert_close(made, a * (0.75 + 0.25 * factor))
