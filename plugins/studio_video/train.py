"""Train the video model on pictures and clips together, packed into one row: rectified flow (Liu et al. 2022).

A clip of sixteen frames costs as much as sixteen pictures, so a few frames of it are drawn at random times (as Harvey
et al. 2022 train on long videos): positions are times, so the net meets all of them in the end. Of some clips the first
frame is given, of some the first and the last; given frames have noise level 0 and no loss. One caption in ten is
empty, for classifier-free guidance (Ho and Salimans 2022).

Every step draws its numbers from the step's own seed: a run that was stopped ends at the same weights as one that was
not. Knows nothing of the VAE; `bank` has made the latents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.attention.serving import Serving, lending
from studio.training.ema import Ema
from studio.training.run import Run
from studio_clip import captions
from studio_diffusion.train_image import share
from studio_video.model import Clip, Shape, VideoTransformer, Views, pack
from studio_video.motions import ONWARD, POSES, REST, THROUGH, Pose
from studio_video.product import Product

Encode = Callable[[Sequence[str]], list[Tensor]]
NAMED = ("a {}", "a {}", "{}", "the {}")
COUNTS = (4, 4, 6, 8)
"""Frames drawn of a clip."""
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


def draw(bank: Tensor, records: Sequence[dict[str, Any]], weights: Sequence[float], frames: int, moving: float,
         rng: random.Random) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[str]]:  # fmt: skip
    """Clips and pictures of about `frames` frames in all, a part of `moving` of them in clips.

    Args:
        bank: (N, poses, C, h, w) latents; row i is of `records[i]`, which is drawn by `weights[i]`.

    Returns:
        For each: latents float32 (T, C, h, w), times (T,), which frames are given (T,), and the caption. Those of one
        length stand together.
    """
    rows: list[tuple[Tensor, Tensor, Tensor, str]] = []
    left = round(frames * moving)
    while left > 0:
        count, which = rng.choice(COUNTS), rng.choices(range(len(records)), weights)[0]
        given = rng.choices(("", "first", "both"), (7, 2, 1))[0]
        paths = ONWARD if given == "first" else THROUGH
        motion = rng.choice(list(paths))
        path = paths[motion]
        count = min(count, len(path))
        between = rng.sample(range(1, len(path) - 1), count - 2)
        at = sorted([0, *between, len(path) - 1] if given else rng.sample(range(len(path)), count))
        is_given = torch.tensor([(bool(given) and i == 0) or (given == "both" and i == len(path) - 1) for i in at])
        poses = [_INDEX.get(path[i], _PLAIN) for i in at]
        times = torch.tensor([i / (len(path) - 1) for i in at])
        rows.append((bank[which, poses].float(), times, is_given, caption(records[which], motion, rng)))
        left -= len(at)
    for _ in range(max(1, frames - sum(len(row[0]) for row in rows))):
        which = rng.choices(range(len(records)), weights)[0]
        rows.append((bank[which, [_PLAIN]].float(), torch.tensor([0.5]), torch.tensor([False]),
                     caption(records[which], "", rng)))  # fmt: skip
    rows.sort(key=lambda row: len(row[0]))
    x0, times, given, texts = (list(each) for each in zip(*rows, strict=True))
    return x0, times, given, texts  # type: ignore[return-value]


def noisy(x0: Sequence[Tensor], times: Sequence[Tensor], given: Sequence[Tensor], texts: Sequence[Tensor],
          noise: torch.Generator, device: torch.device) -> tuple[list[Clip], list[Tensor]]:  # fmt: skip
    """The clips at random noise levels, and the velocities (T, C, h, w) that the net is to find.

    Levels are a logistic of normal numbers (Esser et al. 2024, section 3.1), higher where frames tell of one another.
    """
    clips, targets = [], []
    for clean, when, still, text in zip(x0, times, given, texts, strict=True):
        e = torch.randn(clean.shape, generator=noise)
        shift = 0.0 if len(clean) == 1 else 0.7
        s = torch.sigmoid(shift + 1.2 * torch.randn(1, generator=noise)).clamp(0.001, 0.999)
        levels = torch.where(still, 0.0, s)
        x = torch.lerp(clean, e, levels[:, None, None, None])
        clips.append(Clip(*(each.to(device) for each in (x, when, levels, text))))
        targets.append((e - clean).to(device))
    return clips, targets


def loss_of(model: VideoTransformer, clips: Sequence[Clip], targets: Sequence[Tensor], views: Views) -> Tensor:
    """The mean squared error of the velocities over all frames that are not given."""
    packed = pack(clips, model.shape)
    with torch.autocast(packed.patches.device.type, torch.bfloat16):
        said = packed.unpack(model(packed, views))
    errors = [(v.float() - target).square().mean((1, 2, 3)) for v, target in zip(said, targets, strict=True)]
    counts = packed.levels > 0
    return (torch.cat(errors) * counts).sum() / counts.sum()


def train(bank: Tensor, records: Sequence[dict[str, Any]], encode: Encode, folder: Path, *, device: torch.device,
          steps: int, minutes: float, frames: int = 32, moving: tuple[float, float] = (0.25, 0.75),
          peak: float = 1e-3, decay: float = 0.998, shape: Shape | None = None, seed: int = 0,
          log_every: int = 50) -> VideoTransformer:  # fmt: skip
    """Train, or go on training, in `folder`; return the averaged model.

    Args:
        bank: float16 (N, poses, C, h, w), row i of `records[i]`.
        encode: texts to token states (n, W) each, without padding.
        frames: frames a step, over all processes of the run.
        moving: the part of them that is in clips, at the beginning of the run and at its end.
        peak: highest learning rate.
    """
    torch.manual_seed(seed)
    shape = shape or Shape(channels=bank.shape[2], text=encode([""])[0].shape[-1])
    model = VideoTransformer(shape).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, decay)
    run = Run(folder, model, optimizer, ema, steps=steps, minutes=minutes, log_every=log_every)
    weights = [share(record) for record in records]
    views = Views(backend="product") if device.type == "cpu" else Views()
    with lending(Serving([Product()])):
        for step in run:
            run.rate(peak)
            rng = random.Random(f"{seed}-{step}-{run.peers.rank}")
            noise = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + run.peers.rank)
            part = moving[0] + (moving[1] - moving[0]) * run.done
            x0, times, given, texts = draw(bank, records, weights, max(1, frames // run.peers.count), part, rng)
            clips, targets = noisy(x0, times, given, encode(texts), noise, device)
            loss = loss_of(model, clips, targets, views)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            run.share(model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            run.log(loss=loss.item())
    return ema.module
