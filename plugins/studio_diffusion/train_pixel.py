"""Train a pixel DDPM: diffusers' `UNet2DModel` on small pictures, with or without classes (Ho et al. 2020, algorithm
1).

One label in ten is dropped, for classifier-free guidance (Ho and Salimans 2022). The squared error is weighted by
min(SNR, 5) (Hang et al. 2023), else low noise levels dominate. Random numbers of a step depend only on the seed and the
step: a resumed run ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional as F

from studio.devices.precision import autocast
from studio.diffusion.noise import NoiseSchedule
from studio.files import write_atomically
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run
from studio_diffusion.pixel import CLEAN, PixelDiffusion, PixelRow

GRID_ROWS, GRID_COLUMNS, GRID_STEPS, GRID_GUIDANCE = 4, 8, 10, 2.0


def build(size: int, classes: int, channels: tuple[int, ...] = (32, 48, 112, 192)) -> UNet2DModel:
    """The starter's U-Net with fresh weights: 6.2M parameters with 286 classes; attention at a quarter of the size.

    `classes` includes the one for "none"; 0 is an unconditional U-Net. Channels are few at full resolution, where they
    cost most time, and many below.
    """
    return UNet2DModel(
        sample_size=size, block_out_channels=channels, layers_per_block=1, norm_num_groups=16, attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), num_class_embeds=classes or None,
    )  # fmt: skip


def draw(pictures: Tensor, labels: Tensor, count: int, none: int, drop: float,
         rng: torch.Generator) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Random pictures, half of them mirrored, and their labels, a fraction `drop` of them replaced by `none`.

    Args:
        pictures: uint8 (N, 3, H, W); labels: int64 (N,).

    Returns:
        float32 (count, 3, H, W) in [-1, 1], and int64 (count,).
    """
    rows = torch.randint(len(pictures), (count,), generator=rng)
    x0 = pictures[rows].float().div_(127.5).sub_(1)
    mirrored = torch.rand(count, generator=rng) < 0.5
    x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)
    dropped = torch.rand(count, generator=rng) < drop
    return x0, torch.where(dropped, none, labels[rows])


def loss_of(model: torch.nn.Module, schedule: NoiseSchedule, x0: Tensor, labels: Tensor | None, t: Tensor, e: Tensor,
            gamma: float) -> Tensor:  # fmt: skip
    """The mean weighted squared error of the U-Net's output for x0 (B, C, H, W) with noise `e` at timesteps t (B,)."""
    at = schedule.level(t)
    with autocast(x0.device):
        output = model(at.alpha * x0 + at.sigma * e, t, labels).sample
    error = F.mse_loss(output.float(), schedule.target(x0, e, at), reduction="none")
    return (schedule.weight(at, gamma) * error).mean()


def grid(model: PixelDiffusion, seed: int = 0) -> np.ndarray:
    """Four rows of eight pictures, with labels spread evenly if there are any: uint8 (4H, 8W, 3)."""
    rng = torch.Generator().manual_seed(seed)
    count = GRID_ROWS * GRID_COLUMNS
    labels = [
        model.class_of(model.labels[i * len(model.labels) // count] if model.labels else "") for i in range(count)
    ]
    first, *others = model.times(GRID_STEPS)
    rows = [
        PixelRow(torch.randn(model.shape, generator=rng), label, GRID_GUIDANCE, "dpmpp-2m", CLEAN, first)
        for label in labels
    ]
    with torch.inference_mode():
        for t_next in others:
            rows = model.step([row.advance(t_next) for row in rows])
    made = model.pictures(torch.stack([row.x for row in rows])).numpy()  # (32, H, W, 3)
    made = made.reshape(GRID_ROWS, GRID_COLUMNS, *made.shape[1:]).transpose(0, 2, 1, 3, 4)
    return made.reshape(made.shape[0] * made.shape[1], -1, 3)


def save_grid(model: PixelDiffusion, folder: Path) -> None:
    """Write the grid to the folder's `samples.png`."""
    out = io.BytesIO()
    PIL.Image.fromarray(grid(model)).save(out, "PNG")
    write_atomically(folder / "samples.png", out.getvalue())


def train(pictures: np.ndarray, labels: list[str], schedule: NoiseSchedule, folder: Path, *, device: torch.device,
          steps: int, minutes: float, batch: int = 32, peak: float = 6e-4, drop: float = 0.1, gamma: float = 5.0,
          decay: float = 0.998, grid_every: int = 500, seed: int = 0) -> tuple[UNet2DModel, list[str]]:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA model and its class names.

    Args:
        pictures: uint8 (N, size, size, 3).
        labels: one per picture; all empty for an unconditional model.
        batch: batch size over all processes of the run.
        peak: peak learning rate.
        drop: fraction of labels dropped, for classifier-free guidance.
        gamma: the gamma of min-SNR loss weighting.
        grid_every: steps between `samples.png` files.

    Raises:
        StudioError: a loss is not finite, or the run in `folder` has another size, schedule, or data.
        WeightsError: the checkpoint is damaged or does not fit the model.
    """
    torch.manual_seed(seed)
    names = sorted(set(labels) - {""})
    model = build(pictures.shape[1], len(names) + 1 if names else 0).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, decay)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes,
        fixed={"size": pictures.shape[1], "labels": names, "schedule": schedule.config,
               "data": fingerprint(pictures, labels)},
        changeable={"batch": batch, "rate": peak, "drop": drop, "gamma": gamma, "seed": seed},
    )  # fmt: skip
    batch = max(1, batch // run.peers.count)
    pixels = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).contiguous()
    ids = torch.tensor([names.index(label) if names else 0 for label in labels])
    for step in run:
        run.rate(peak)
        rng = run.noise(seed)
        x0, classes = draw(pixels, ids, batch, len(names), drop, rng)
        t = torch.randint(len(schedule), (batch,), generator=rng)
        e = torch.randn(x0.shape, generator=rng)
        x0, classes, t, e = (each.to(device) for each in (x0, classes, t, e))
        loss = loss_of(model, schedule, x0, classes if names else None, t, e, gamma)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.share(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        run.log(loss=loss)
        if (step + 1) % grid_every == 0 and not run.peers.rank:
            save_grid(PixelDiffusion(ema.module, schedule, names if names else None), folder)
    return ema.module, names
