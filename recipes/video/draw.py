"""Training samples of the video starter as latents: pictures, clips with synthesized motion, and animated emoji."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from recipes.text import captions
from recipes.video.motions import ONWARD, PHASES, POSES, REST, THROUGH, Pose
from studio_video.train import TrainingSample, few, given

NAMED = ("a {}", "a {}", "{}", "the {}")
MOVING = "moving"
"""The verb for animated emoji."""
FILMED = 0.3
"""The fraction of an object's clips that are from its animated emoji, if it has one."""
OFTEN = {"spinning clockwise": 3.0, "spinning anticlockwise": 3.0}
"""Sampling weights of motions other than 1: rotation takes longest to learn, since each angle is another picture."""
_INDEX = {pose: index for index, pose in enumerate(POSES)}
_PLAIN = _INDEX[Pose(scale=REST)]


def caption(record: dict[str, Any], motion: str, rng: random.Random) -> str:
    """The caption of a picture (no `motion`) or of a clip; empty once in ten."""
    if rng.random() < 0.1:
        return ""
    name = rng.choice(NAMED).format(record["label"])
    if motion:
        return f"{name} {motion}"
    return name if rng.random() < 0.75 else captions.caption(record, rng)


def draw(latents: Tensor, records: Sequence[dict[str, Any]], weights: Sequence[float], frames: int, moving: float,
         rng: random.Random, films: Mapping[int, Tensor] = MappingProxyType({})) -> list[TrainingSample]:  # fmt: skip
    """A batch of pictures and clips of about `frames` frames, a fraction `moving` of them in clips, smallest first.

    Args:
        latents: (N, poses, C, h, w); row i is of `records[i]` and has the sampling weight `weights[i]`.
        films: (T, C, h, w) latents of the rows that have an animation.
    """
    made: list[TrainingSample] = []
    whole = math.prod(latents.shape[2:])
    pictures = frames * whole - round(frames * moving) * whole  # in elements, since pictures may be cropped
    left = frames * whole
    while left > 0:
        which = rng.choices(range(len(records)), weights)[0]
        if left <= pictures:
            made.append(_picture(latents[which], records[which], rng))
        elif which in films and rng.random() < FILMED:
            made.append(_film(films[which], records[which], rng))
        else:
            made.append(_clip(latents[which], records[which], rng))
        left -= made[-1].x0.numel()
    return sorted(made, key=lambda each: each.x0.numel())


def _picture(poses: Tensor, record: dict[str, Any], rng: random.Random) -> TrainingSample:
    """The object at rest, usually cropped to its centre, because the white border costs as much."""
    height, width = poses.shape[-2:]
    y, x = (round((1 - REST) / 2 * side / 2) * 2 * (rng.random() < 0.7) for side in (height, width))
    middle = poses[[_PLAIN], :, y : height - y, x : width - x].float()
    return TrainingSample(middle, torch.tensor([0.5]), torch.tensor([False]), caption(record, "", rng))


def _clip(poses: Tensor, record: dict[str, Any], rng: random.Random) -> TrainingSample:
    """A few frames of a random motion, from a picture in all poses (poses, C, h, w)."""
    which = given(rng)
    paths = ONWARD if which == "first" else THROUGH
    motion = rng.choices(list(paths), [OFTEN.get(name, 1.0) for name in paths])[0]
    return few(poses[[_INDEX[pose] for pose in paths[motion]]], which, caption(record, motion, rng), rng)


def _film(frames: Tensor, record: dict[str, Any], rng: random.Random) -> TrainingSample:
    """A few frames of an animation (T, C, h, w), from a part as long as a motion."""
    first = rng.randrange(len(frames) - PHASES + 1)
    return few(frames[first : first + PHASES], given(rng), caption(record, MOVING, rng), rng)
