"""Train the video model on pictures and clips together, packed into one row: rectified flow (Liu et al. 2022).

A clip of sixteen frames costs as much as sixteen pictures, so a few frames of it are drawn at random times (as Harvey
et al. 2022 train on long videos): positions are times, so the net meets all of them in the end. Of some clips the first
frame is given, of some the first and the last; given frames have noise level 0 and no loss. One caption in ten is
empty, for classifier-free guidance (Ho and Salimans 2022).

Every step draws its numbers from the step's own seed: a run that was stopped ends at the same weights as one that was
not. Knows nothing of the VAE; `bank` has made the latents.
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
from studio.attention.serving import Serving, lending
from studio.devices.precision import autocast
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run
from studio_clip import captions
from studio_diffusion.train_image import share
from studio_video.model import Clip, Shape, VideoTransformer, Views, pack
from studio_video.motions import ONWARD, PHASES, POSES, REST, THROUGH, Pose
from studio_video.product import Product

Encode = Callable[[Sequence[str]], list[Tensor]]
NAMED = ("a {}", "a {}", "{}", "the {}")
COUNTS = (4, 4, 6, 8)
"""Frames drawn of a clip."""
NEAR = 0.5
"""The part of the clips without given frames that show a part of their movement: their frames lie nearer."""
MOVING = "moving"
"""The verb of what an animated emoji does."""
FILMED = 0.3
"""The part of a thing's clips that show what its animated emoji does, if it has one."""
OFTEN = {"spinning clockwise": 3.0, "spinning anticlockwise": 3.0}
"""Motions drawn more often than the others, and how often: what slides is the same patches elsewhere, but what is
turned is another picture at each angle, and takes longest to learn."""
_INDEX = {pose: index for index, pose in enumerate(POSES)}
_PLAIN = _INDEX[Pose(scale=REST)]


def caption(record: dict[str, Any], motion: str, rng: random.Random) -> str:
    """What a picture (no `motion`) or a clip of the record is called; empty once in ten."""
    if rng.random() < 0.1:
        return ""
    name = rng.choice(NAMED).format(record["label"])
    if motion:
        return f"{name} {motion}"
    return name if rng.random() < 0.75 else captions.caption(record, rng)


class Sample(NamedTuple):
    """A picture or a clip: clean latents float32 (T, C, h, w), times (T,), which frames are given (T,), the caption."""

    x0: Tensor
    times: Tensor
    given: Tensor
    caption: str


def draw(bank: Tensor, records: Sequence[dict[str, Any]], weights: Sequence[float], frames: int, moving: float,
         rng: random.Random, films: Mapping[int, Tensor] = MappingProxyType({})) -> list[Sample]:  # fmt: skip
    """Clips and pictures of about `frames` whole frames, a part of `moving` of them in clips, the smallest first.

    Args:
        bank: (N, poses, C, h, w) latents; row i is of `records[i]`, which is drawn by `weights[i]`.
        films: (T, C, h, w) of those rows that have an animation.
    """
    made: list[Sample] = []
    whole = math.prod(bank.shape[2:])
    pictures = frames * whole - round(frames * moving) * whole  # in numbers: pictures may be cut
    left = frames * whole
    while left > 0:
        which = rng.choices(range(len(records)), weights)[0]
        if left <= pictures:
            made.append(_picture(bank[which], records[which], rng))
        elif which in films and rng.random() < FILMED:
            made.append(_film(films[which], records[which], rng))
        else:
            made.append(_clip(bank[which], records[which], rng))
        left -= made[-1].x0.numel()
    return sorted(made, key=lambda each: each.x0.numel())


def _picture(poses: Tensor, record: dict[str, Any], rng: random.Random) -> Sample:
    """The thing at rest; most often its middle alone, as the rest is white and costs as much as it."""
    height, width = poses.shape[-2:]
    y, x = (round((1 - REST) / 2 * side / 2) * 2 * (rng.random() < 0.7) for side in (height, width))
    middle = poses[[_PLAIN], :, y : height - y, x : width - x].float()
    return Sample(middle, torch.tensor([0.5]), torch.tensor([False]), caption(record, "", rng))


def _clip(poses: Tensor, record: dict[str, Any], rng: random.Random) -> Sample:
    """A few frames of a movement that is drawn at random, of a picture in all poses (poses, C, h, w)."""
    given = _given(rng)
    paths = ONWARD if given == "first" else THROUGH
    motion = rng.choices(list(paths), [OFTEN.get(name, 1.0) for name in paths])[0]
    return _few(poses[[_INDEX[pose] for pose in paths[motion]]], given, caption(record, motion, rng), rng)


def _film(frames: Tensor, record: dict[str, Any], rng: random.Random) -> Sample:
    """A few frames of an animation (T, C, h, w), of a part of it that is as long as a movement."""
    first = rng.randrange(len(frames) - PHASES + 1)
    return _few(frames[first : first + PHASES], _given(rng), caption(record, MOVING, rng), rng)


def _given(rng: random.Random) -> str:
    return rng.choices(("", "first", "both"), (7, 2, 1))[0]


def _few(frames: Tensor, given: str, told: str, rng: random.Random) -> Sample:
    """A few frames of a clip (T, C, h, w), which take their places in its time, 0 to 1."""
    last, count = len(frames) - 1, min(rng.choice(COUNTS), len(frames))
    if given:
        at = [0, *sorted(rng.sample(range(1, last), count - 2)), last]
    else:
        at = sorted(rng.sample(_span(len(frames), count, rng), count))
    still = {"": (), "first": (0,), "both": (0, last)}[given]
    times, is_given = torch.tensor([i / last for i in at]), torch.tensor([i in still for i in at])
    return Sample(frames[at].float(), times, is_given, told)


def _span(frames: int, least: int, rng: random.Random) -> range:
    """What of a clip of so many frames is drawn from: all, or of `NEAR` of the clips a part of `least` or more."""
    if rng.random() >= NEAR:
        return range(frames)
    length = rng.randint(least, frames)
    first = rng.randint(0, frames - length)
    return range(first, first + length)


def noisy(samples: Sequence[Sample], texts: Sequence[Tensor], noise: torch.Generator,
          device: torch.device) -> tuple[list[Clip], list[Tensor]]:  # fmt: skip
    """The samples at random noise levels, and the velocities (T, C, h, w) that the net is to find.

    Levels are a logistic of normal numbers (Esser et al. 2024, section 3.1), higher where frames tell of one another.
    """
    clips, targets = [], []
    for (clean, times, given, _), text in zip(samples, texts, strict=True):
        e = torch.randn(clean.shape, generator=noise)
        shift = 0.0 if len(clean) == 1 else 0.7
        s = torch.sigmoid(shift + 1.2 * torch.randn(1, generator=noise)).clamp(0.001, 0.999)
        levels = torch.where(given, 0.0, s)
        x = torch.lerp(clean, e, levels[:, None, None, None])
        clips.append(Clip(x.to(device), times, levels, text.to(device)))
        targets.append((e - clean).to(device))
    return clips, targets


def loss_of(model: VideoTransformer, clips: Sequence[Clip], targets: Sequence[Tensor], views: Views) -> Tensor:
    """The mean squared error of the velocities over all frames that are not given."""
    packed = pack(clips, model.shape)
    with autocast(packed.patches.device):
        said = packed.unpack(model(packed, views))
    errors = [(v.float() - target).square().mean((1, 2, 3)) for v, target in zip(said, targets, strict=True)]
    counts = packed.levels > 0
    return (torch.cat(errors) * counts).sum() / counts.sum()


def train(bank: Tensor, records: Sequence[dict[str, Any]], encode: Encode, folder: Path, *, device: torch.device,
          steps: int, minutes: float, frames: int = 32, moving: tuple[float, float] = (0.25, 0.75),
          peak: float = 1e-3, decay: float = 0.998, shape: Shape | None = None, seed: int = 0, log_every: int = 50,
          films: Mapping[int, Tensor] = MappingProxyType({})) -> VideoTransformer:  # fmt: skip
    """Train, or go on training, in `folder`; return the model with the averaged weights.

    Args:
        bank: float16 (N, poses, C, h, w), row i of `records[i]`.
        encode: texts to token states (n, W) each, without padding.
        frames: frames a step, over all processes of the run.
        moving: the part of them that is in clips, at the beginning of the run and at its end.
        peak: highest learning rate.
        films: see `draw`.
    """
    torch.manual_seed(seed)
    shape = shape or Shape(channels=bank.shape[2], text=encode([""])[0].shape[-1])
    model = VideoTransformer(shape).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, decay)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes, log_every=log_every,
        fixed={"data": fingerprint(records, list(bank.shape))},
        changeable={"frames": frames, "moving": moving, "films": len(films), "rate": peak, "seed": seed},
    )  # fmt: skip
    weights = [share(record) for record in records]
    views = Views(backend="product") if computes_as_a_cpu(device) else Views()
    with lending(Serving([Product()])):
        for step in run:
            run.rate(peak)
            rng = random.Random(f"{seed}-{step}-{run.peers.rank}")
            noise = run.noise(seed)
            part = moving[0] + (moving[1] - moving[0]) * run.done
            samples = draw(bank, records, weights, max(1, frames // run.peers.count), part, rng, films)
            texts = encode([each.caption for each in samples])
            clips, targets = noisy(samples, texts, noise, device)
            loss = loss_of(model, clips, targets, views)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            run.share(model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            run.log(loss=loss)
    model.load_state_dict(ema.module.state_dict())
    return model.eval()
