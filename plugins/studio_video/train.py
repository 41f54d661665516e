"""Train the video model on packed pictures and clips: rectified flow (Liu et al. 2022).

A clip of sixteen frames costs as much as sixteen pictures, so only a few frames at random times are used (as in Harvey
et al. 2022 for long videos); positions are times, so that all of them are covered over the run. In some clips the first
frame, or the first and the last, are conditioning frames, with noise level 0 and no loss. One caption in ten is empty,
for classifier-free guidance (Ho and Salimans 2022).

Random numbers of a step depend only on the seed and the step: a resumed run ends with the same weights as an
uninterrupted one. `latent_cache` has the latents.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studio.attention.backends.sdpa import computes_as_a_cpu
from studio.attention.current import DispatchSettings, use_dispatch
from studio.devices.precision import autocast
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run
from studio_clip import captions
from studio_diffusion.train_image import share
from studio_video.model import VideoConfig, VideoTransformer, pack
from studio_video.motions import ONWARD, PHASES, POSES, REST, THROUGH, Pose
from studio_video.packing import AttentionPattern, VideoSample
from studio_video.product import Product

Encode = Callable[[Sequence[str]], list[Tensor]]
NAMED = ("a {}", "a {}", "{}", "the {}")
COUNTS = (4, 4, 6, 8)
"""Frames sampled from a clip."""
NEAR = 0.5
"""The fraction of clips without conditioning frames that show only a part of their motion, with closer frames."""
MOVING = "moving"
"""The verb for animated emoji."""
FILMED = 0.3
"""The fraction of a thing's clips taken from its animated emoji, if it has one."""
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


class TrainingSample(NamedTuple):
    """A picture or a clip: clean latents float32 (T, C, h, w), times (T,), conditioning mask (T,), caption."""

    x0: Tensor
    times: Tensor
    given: Tensor
    caption: str


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
    """The thing at rest, usually cropped to its centre, since the white border costs as much."""
    height, width = poses.shape[-2:]
    y, x = (round((1 - REST) / 2 * side / 2) * 2 * (rng.random() < 0.7) for side in (height, width))
    middle = poses[[_PLAIN], :, y : height - y, x : width - x].float()
    return TrainingSample(middle, torch.tensor([0.5]), torch.tensor([False]), caption(record, "", rng))


def _clip(poses: Tensor, record: dict[str, Any], rng: random.Random) -> TrainingSample:
    """A few frames of a random motion, from a picture in all poses (poses, C, h, w)."""
    given = _given(rng)
    paths = ONWARD if given == "first" else THROUGH
    motion = rng.choices(list(paths), [OFTEN.get(name, 1.0) for name in paths])[0]
    return _few(poses[[_INDEX[pose] for pose in paths[motion]]], given, caption(record, motion, rng), rng)


def _film(frames: Tensor, record: dict[str, Any], rng: random.Random) -> TrainingSample:
    """A few frames of an animation (T, C, h, w), from a part as long as a motion."""
    first = rng.randrange(len(frames) - PHASES + 1)
    return _few(frames[first : first + PHASES], _given(rng), caption(record, MOVING, rng), rng)


def _given(rng: random.Random) -> str:
    return rng.choices(("", "first", "both"), (7, 2, 1))[0]


def _few(frames: Tensor, given: str, text: str, rng: random.Random) -> TrainingSample:
    """A few frames of a clip (T, C, h, w), with their times in it, 0 to 1."""
    last, count = len(frames) - 1, min(rng.choice(COUNTS), len(frames))
    if given:
        at = [0, *sorted(rng.sample(range(1, last), count - 2)), last]
    else:
        at = sorted(rng.sample(_span(len(frames), count, rng), count))
    still = {"": (), "first": (0,), "both": (0, last)}[given]
    times, is_given = torch.tensor([i / last for i in at]), torch.tensor([i in still for i in at])
    return TrainingSample(frames[at].float(), times, is_given, text)


def _span(frames: int, least: int, rng: random.Random) -> range:
    """The frames to sample from: the whole clip, or for a fraction `NEAR` of clips a part of `least` or more."""
    if rng.random() >= NEAR:
        return range(frames)
    length = rng.randint(least, frames)
    first = rng.randint(0, frames - length)
    return range(first, first + length)


def noisy(samples: Sequence[TrainingSample], texts: Sequence[Tensor], noise: torch.Generator,
          device: torch.device) -> tuple[list[VideoSample], list[Tensor]]:  # fmt: skip
    """The samples at random noise levels, and their target velocities (T, C, h, w).

    Levels are logit-normal (Esser et al. 2024, section 3.1), higher for clips, whose frames are redundant.
    """
    clips, targets = [], []
    for (clean, times, given, _), text in zip(samples, texts, strict=True):
        e = torch.randn(clean.shape, generator=noise)
        shift = 0.0 if len(clean) == 1 else 0.7
        s = torch.sigmoid(shift + 1.2 * torch.randn(1, generator=noise)).clamp(0.001, 0.999)
        levels = torch.where(given, 0.0, s)
        x = torch.lerp(clean, e, levels[:, None, None, None])
        clips.append(VideoSample(x.to(device), times, levels, text.to(device)))
        targets.append((e - clean).to(device))
    return clips, targets


def loss_of(
    model: VideoTransformer, clips: Sequence[VideoSample], targets: Sequence[Tensor], pattern: AttentionPattern
) -> Tensor:
    """The mean squared error of the velocities over all frames except conditioning frames."""
    packed = pack(clips, model.config)
    with autocast(packed.patches.device):
        velocities = packed.unpack(model(packed, pattern))
    errors = [(v.float() - target).square().mean((1, 2, 3)) for v, target in zip(velocities, targets, strict=True)]
    counts = packed.levels > 0
    return (torch.cat(errors) * counts).sum() / counts.sum()


def train(latents: Tensor, records: Sequence[dict[str, Any]], encode: Encode, folder: Path, *, device: torch.device,
          steps: int, minutes: float, frames: int = 32, moving: tuple[float, float] = (0.25, 0.75),
          peak: float = 1e-3, decay: float = 0.998, config: VideoConfig | None = None, seed: int = 0,
          log_every: int = 50, films: Mapping[int, Tensor] = MappingProxyType({})) -> VideoTransformer:  # fmt: skip
    """Train, or resume training, in `folder`; return the model with the EMA weights.

    Args:
        latents: float16 (N, poses, C, h, w); row i is of `records[i]`.
        encode: texts to text encoder states (n, W), without padding.
        frames: batch size in frames, over all processes of the run.
        moving: the fraction of frames from clips, at the beginning of the run and at its end.
        peak: peak learning rate.
        films: see `draw`.
    """
    torch.manual_seed(seed)
    config = config or VideoConfig(channels=latents.shape[2], text=encode([""])[0].shape[-1])
    model = VideoTransformer(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, decay)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes, log_every=log_every,
        fixed={"data": fingerprint(records, list(latents.shape))},
        changeable={"frames": frames, "moving": moving, "films": len(films), "rate": peak, "seed": seed},
    )  # fmt: skip
    weights = [share(record) for record in records]
    pattern = AttentionPattern(backend="product") if computes_as_a_cpu(device) else AttentionPattern()
    with use_dispatch(DispatchSettings([Product()])):
        for step in run:
            run.rate(peak)
            rng = random.Random(f"{seed}-{step}-{run.peers.rank}")
            noise = run.noise(seed)
            part = moving[0] + (moving[1] - moving[0]) * run.done
            samples = draw(latents, records, weights, max(1, frames // run.peers.count), part, rng, films)
            texts = encode([each.caption for each in samples])
            clips, targets = noisy(samples, texts, noise, device)
            loss = loss_of(model, clips, targets, pattern)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            run.share(model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            run.log(loss=loss)
    model.load_state_dict(ema.module.state_dict())
    return model.eval()
