"""Train the video model on packed clips and pictures: rectified flow (Liu et al. 2022).

A clip of sixteen frames costs as much as sixteen pictures, so only a few frames at random times are used (as in Harvey
et al. 2022 for long videos); positions are times, so that all of them are covered over the run. In some clips the first
frame, or the first and the last, are conditioning frames, with noise level 0 and no loss. One caption in ten is empty,
for classifier-free guidance (Ho and Salimans 2022).

Random numbers of a step depend only on the seed and the step: a resumed run ends with the same weights as an
uninterrupted one.
"""

from __future__ import annotations

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
from studio.training.ema import Ema
from studio.training.run import Run
from studio_video.model import VideoConfig, VideoTransformer, pack
from studio_video.packing import AttentionPattern, VideoSample
from studio_video.product import Product

Encode = Callable[[Sequence[str]], list[Tensor]]
Draw = Callable[[random.Random, int, float], "list[TrainingSample]"]
"""Draws a batch of about so many frames, at a fraction of the run that is done, 0 to 1."""
WINDOW = 16
"""Frames of a long clip from which those of a sample are taken, so that they are not too far apart."""
COUNTS = (4, 4, 6, 8)
"""Frames sampled from a clip."""
NEAR = 0.5
"""The fraction of clips without conditioning frames that show only a part of their motion, with closer frames."""


class TrainingSample(NamedTuple):
    """A picture or a clip: clean latents float32 (T, C, h, w), times (T,), conditioning mask (T,), caption."""

    x0: Tensor
    times: Tensor
    given: Tensor
    caption: str


def draw_clips(
    clips: Sequence[Tensor], captions: Sequence[str], rng: random.Random, frames: int
) -> list[TrainingSample]:
    """A batch of clips (T, C, h, w) of about `frames` frames, smallest first; one caption in ten is empty."""
    made: list[TrainingSample] = []
    left = frames
    while left > 0:
        which = rng.randrange(len(clips))
        first = rng.randrange(max(1, len(clips[which]) - WINDOW + 1))
        text = "" if rng.random() < 0.1 else captions[which]
        made.append(sample(clips[which][first : first + WINDOW], text, rng))
        left -= len(made[-1].x0)
    return sorted(made, key=lambda each: each.x0.numel())


def sample(frames: Tensor, text: str, rng: random.Random) -> TrainingSample:
    """A few frames of a clip (T, C, h, w); the first, or the first and the last, may be conditioning frames."""
    if len(frames) < 3:
        times = torch.linspace(0, 1, len(frames)) if len(frames) > 1 else torch.tensor([0.5])
        return TrainingSample(frames.float(), times, torch.zeros(len(frames), dtype=torch.bool), text)
    return few(frames, given(rng), text, rng)


def given(rng: random.Random) -> str:
    """Which frames of a clip are conditioning frames: none, the first, or both the first and the last."""
    return rng.choices(("", "first", "both"), (7, 2, 1))[0]


def few(frames: Tensor, given: str, text: str, rng: random.Random) -> TrainingSample:
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


def train(draw: Draw, data: str, encode: Encode, folder: Path, *, device: torch.device, steps: int, minutes: float,
          config: VideoConfig, frames: int = 32, peak: float = 1e-3, decay: float = 0.998, seed: int = 0,
          log_every: int = 50, settings: Mapping[str, Any] = MappingProxyType({})) -> VideoTransformer:  # fmt: skip
    """Train, or resume training, in `folder`; return the model with the EMA weights.

    Args:
        draw: draws the batches, from a generator that depends only on the seed and the step.
        data: a fingerprint of what it draws from; a run is resumed only with the same.
        encode: texts to text encoder states (n, W), without padding.
        frames: batch size in frames, over all processes of the run.
        peak: peak learning rate.
        settings: more settings that may change between sessions, for the notice.
    """
    torch.manual_seed(seed)
    model = VideoTransformer(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, decay)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes, log_every=log_every,
        fixed={"data": data}, changeable={"frames": frames, **settings, "rate": peak, "seed": seed},
    )  # fmt: skip
    pattern = AttentionPattern(backend="product") if computes_as_a_cpu(device) else AttentionPattern()
    with use_dispatch(DispatchSettings([Product()])):
        for step in run:
            run.rate(peak)
            rng = random.Random(f"{seed}-{step}-{run.peers.rank}")
            noise = run.noise(seed)
            samples = draw(rng, max(1, frames // run.peers.count), run.done)
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
