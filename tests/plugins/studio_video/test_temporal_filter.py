"""Optical flow finds true motion; the filter takes grain away along it, and smears nothing."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.video.motions import REST, THROUGH, Pose, draw
from studio_video import temporal_filter
from studio_video.optical_flow import around, flow, warped
from studio_video.temporal_filter import filtered

ALIKE = ("sliding right", "sliding up", "sliding down", "spinning anticlockwise", "shrinking")  # to others


def thing(seed: int = 0, side: int = 128) -> PIL.Image.Image:
    """Smooth patches of colour on white, unlike at every place."""
    patches = np.random.default_rng(seed).integers(0, 220, (5, 5, 3), np.uint8)
    picture, inner = PIL.Image.new("RGB", (side, side), "white"), side * 3 // 4
    picture.paste(PIL.Image.fromarray(patches).resize((inner, inner), PIL.Image.Resampling.BICUBIC), (side // 8,) * 2)
    return picture


def posed(pose: Pose, seed: int = 0, side: int = 128) -> torch.Tensor:
    """A frame, uint8 (S, S, 3)."""
    return torch.from_numpy(draw(thing(seed, side), pose).copy())


def clip(motion: str) -> torch.Tensor:
    return torch.stack([posed(pose) for pose in THROUGH[motion]])


def grained(frames: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Each frame with blots of its own, where it is not white."""
    generator = torch.Generator().manual_seed(seed)
    blots = around(torch.randn(len(frames), 3, *frames.shape[1:3], generator=generator), 2).permute(0, 2, 3, 1)
    ink = (frames < 250).any(-1, keepdim=True)
    return (frames + 100 * blots * ink).clamp(0, 255).byte()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean absolute difference in levels of 255."""
    return float((a.float() - b.float()).abs().mean())


def pair(side: int, pose: Pose) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The thing at rest and in a pose, (1, 3, S, S) each, and (S, S) where it is seen at rest, its border aside."""
    at_rest, moved = (posed(each, side=side) for each in (Pose(), pose))
    ink = (at_rest < 250).any(-1).float()[None, None]
    inside = around(ink, 2)[0, 0] > 0.999
    return at_rest.permute(2, 0, 1)[None] / 255, moved.permute(2, 0, 1)[None] / 255, inside


@settings(max_examples=15, deadline=None)
@given(
    dx=st.floats(-10, 10), dy=st.floats(-10, 10), angle=st.floats(-8, 8), scale=st.floats(0.94, 1.06),
    side=st.sampled_from([64, 128, 256]),
)  # fmt: skip
def test_flow_is_the_motion(dx: float, dy: float, angle: float, scale: float, side: int) -> None:
    a, b, inside = pair(side, Pose(dx=dx, dy=dy, angle=angle, scale=REST * scale))
    found = flow(a, b)[0]
    turn, unit, middle = math.radians(angle), side / 128, side / 2 - 0.5
    x = torch.arange(side) - middle
    y = x[:, None]
    right = scale * (math.cos(turn) * x - math.sin(turn) * y) - x + dx * unit
    down = scale * (math.sin(turn) * x + math.cos(turn) * y) - y + dy * unit
    wrong = torch.hypot(found[0] - right, found[1] - down)[inside]
    assert wrong.mean() < 0.75 * max(1, unit)
    assert (warped(b, found[None]) - a).abs().mean() < 0.3 * (b - a).abs().mean() + 0.008  # resampling blurs small ones


def test_nothing_moves_between_equal_frames() -> None:
    a, _, _ = pair(128, Pose())
    assert flow(a, a).abs().max() < 1e-3


def test_around_is_a_mean() -> None:
    x = torch.randn(2, 3, 9, 7)
    wide = torch.nn.functional.pad(x, (2, 2, 2, 2), "replicate")
    torch.testing.assert_close(around(x, 2), torch.nn.functional.avg_pool2d(wide, 5, 1))


@pytest.mark.parametrize(
    "motion",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("sliding left", "spinning clockwise")))
        for name in THROUGH
        if name not in ALIKE
    ],
)
def test_grain_goes_and_the_clip_stays(motion: str) -> None:
    true = clip(motion)
    worse = grained(true)
    assert apart(filtered(worse), true) < 0.75 * apart(worse, true)
    assert apart(filtered(true), true) < 0.25 * apart(worse, true)


def test_a_cut_is_no_motion() -> None:
    one, other = (posed(Pose(), seed).expand(8, -1, -1, -1) for seed in (0, 1))
    frames = grained(torch.cat([one, other]))
    made = filtered(frames)
    assert apart(made[7], one[0]) < apart(frames[7], one[0])
    assert apart(made[8], other[0]) < apart(frames[8], other[0])


def test_parts_of_a_long_clip_are_as_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = grained(torch.cat([clip("sliding left"), clip("bouncing"), clip("growing")[:5]]))
    parts = filtered(frames)
    monkeypatch.setattr(temporal_filter, "_BATCH", 64)
    assert (parts.int() - filtered(frames)).abs().max() <= 1


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_a_loop_has_no_seam(count: int) -> None:
    frames = grained(clip("bouncing"))[:count]
    made = filtered(frames, loop=True).roll(3, 0)
    assert (made.int() - filtered(frames.roll(3, 0), loop=True)).abs().max() <= 1


def test_a_single_frame_stays() -> None:
    still = grained(clip("growing"))[:1]
    assert torch.equal(filtered(still), still)
