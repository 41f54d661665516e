"""benchmarks/steadiness.py: poses are undone, a true clip is steady, one of another motion or of unlike frames not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest

from recipes.video.motions import PHASES, THROUGH, Pose, draw


@pytest.fixture(scope="module")
def measure() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
        yield importlib.import_module("steadiness")


def thing(seed: int = 0) -> PIL.Image.Image:
    """Smooth patches of colour on white, unlike at every place."""
    patches = np.random.default_rng(seed).integers(0, 220, (5, 5, 3), np.uint8)
    picture = PIL.Image.new("RGB", (128, 128), "white")
    picture.paste(PIL.Image.fromarray(patches).resize((96, 96), PIL.Image.Resampling.BICUBIC), (16, 16))
    return picture


def clip(motion: str, frames: int = PHASES, measure: ModuleType | None = None) -> np.ndarray:
    path = THROUGH[motion] if measure is None else measure.along(THROUGH[motion], frames)
    return np.stack([draw(thing(), pose) for pose in path])


def test_even_times_of_a_path_hit_its_own_poses(measure: ModuleType) -> None:
    for motion, path in THROUGH.items():
        finer = measure.along(path, 4 * (PHASES - 1) + 1)[::4]
        for pose, own in zip(finer, path, strict=True):
            assert (pose.angle - own.angle) % 360 == pytest.approx(0, abs=1e-6), motion
            assert (pose.dx, pose.dy, pose.scale, pose.alpha) == pytest.approx((own.dx, own.dy, own.scale, own.alpha))


@pytest.mark.parametrize("pose", [Pose(dx=12), Pose(dy=-9), Pose(angle=67.5), Pose(scale=1.0), Pose(alpha=0.6)])
def test_an_undone_pose_is_the_thing_at_rest(measure: ModuleType, pose: Pose) -> None:
    rest, seen = measure.undone(draw(thing(), pose), pose)
    apart = np.abs(rest - draw(thing(), Pose())).mean(-1)
    assert seen.mean() > 0.5
    assert apart[seen].mean() < 2


@pytest.mark.parametrize("motion", THROUGH)
def test_true_clips_are_steady_and_others_are_not(measure: ModuleType, motion: str) -> None:
    levels, by_ink = measure.error(clip(motion), motion)
    still = np.repeat(draw(thing(), Pose())[None], PHASES, 0)
    drawn = np.stack([draw(thing(seed), pose) for seed, pose in enumerate(THROUGH[motion])])
    assert by_ink < 0.08
    assert levels < 5
    assert measure.error(drawn, motion)[1] > 5 * by_ink
    if motion != "fading in":  # a thing that is there is as steady as one that comes
        assert measure.error(still, motion)[1] > 2 * by_ink


def test_more_frames_of_a_true_clip_are_steady_too(measure: ModuleType) -> None:
    assert measure.error(clip("bouncing", 40, measure), "bouncing")[1] < 0.08


def test_an_empty_clip_is_not_steady(measure: ModuleType) -> None:
    assert measure.error(np.full((PHASES, 64, 64, 3), 255, np.uint8), "growing")[1] == measure.WORST
