"""Motion made from pictures: each verb does what it says, and the measuring script, which knows none, tells which."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from recipes.video.motions import ONWARD, PHASES, POSES, REST, THROUGH, Pose, draw


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    """benchmarks/tracks.py."""
    path = Path(__file__).parents[3] / "benchmarks" / "tracks.py"
    spec = importlib.util.spec_from_file_location("tracks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tracks"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def thing(side: int = 128) -> PIL.Image.Image:
    """A red half-disc with a blue ear: it has an up and a left."""
    picture = PIL.Image.new("RGB", (side, side), "white")
    pen = PIL.ImageDraw.Draw(picture)
    unit = side / 128
    pen.chord([20 * unit, 20 * unit, 108 * unit, 108 * unit], 180, 360, fill=(200, 40, 50))
    pen.ellipse([84 * unit, 40 * unit, 112 * unit, 90 * unit], fill=(30, 60, 190))
    return picture


def clip(path: tuple[Pose, ...], side: int = 128) -> np.ndarray:
    return np.stack([draw(thing(side), pose) for pose in path])


def test_a_pose_of_full_size_is_the_picture_itself() -> None:
    assert np.array_equal(draw(thing(), Pose(scale=1.0)), np.asarray(thing()))


@pytest.mark.parametrize("motion", THROUGH)
@pytest.mark.parametrize("side", [128, 64])
def test_the_measuring_script_tells_every_motion(judge: ModuleType, motion: str, side: int) -> None:
    assert judge.recognise(judge.tracks(clip(THROUGH[motion], side))) == motion


@pytest.mark.parametrize(
    "motion", [name for name in ONWARD if not name.startswith(("sliding", "shrinking", "growing"))]
)
def test_it_tells_them_from_rest_on(judge: ModuleType, motion: str) -> None:
    assert judge.recognise(judge.tracks(clip(ONWARD[motion]))) == motion


def test_it_tells_a_turn_too_slow_to_be_seen_from_one_frame_to_the_next(judge: ModuleType) -> None:
    turning = tuple(Pose(angle=float(angle)) for angle in np.linspace(-45, 45, 64))
    assert judge.recognise(judge.tracks(clip(turning))) == "spinning clockwise"
    assert judge.recognise(judge.tracks(clip(turning[::-1]))) == "spinning anticlockwise"


def test_it_takes_stillness_and_noise_for_no_motion(judge: ModuleType) -> None:
    still = np.repeat(draw(thing(), Pose())[None], PHASES, 0)
    assert judge.recognise(judge.tracks(still)) == judge.NONE
    noise = np.random.default_rng(0).integers(-9, 9, still.shape)
    assert judge.recognise(judge.tracks((still + noise).clip(0, 255).astype(np.uint8))) == judge.NONE
    assert judge.recognise(judge.tracks(np.full_like(still, 255))) == judge.NONE


def test_frames_in_disorder_are_not_the_motion(judge: ModuleType) -> None:
    order = np.random.default_rng(1).permutation(PHASES)
    for motion in ("sliding left", "growing", "spinning clockwise"):
        assert judge.recognise(judge.tracks(clip(THROUGH[motion])[order])) != motion


def test_a_clip_is_at_rest_half_way_and_begins_at_rest_where_its_picture_is_given() -> None:
    for motion, path in THROUGH.items():
        assert len(path) == PHASES
        middle = path[PHASES // 2]
        assert abs(middle.dx) < 7
        assert middle.dy <= 9
        assert middle.angle == 0, motion
        assert abs(middle.scale - REST) < 0.09, motion
    assert all(path[0].scale == REST and path[0].dx == path[0].angle == 0 for path in ONWARD.values())
    assert {pose for path in (*THROUGH.values(), *ONWARD.values()) for pose in path} <= set(POSES)
