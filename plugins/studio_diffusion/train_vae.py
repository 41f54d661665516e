"""Train the starter's VAE: diffusers' `AutoencoderKL`, 128x128 pictures to 16x16 latents of eight channels (f=8).

L1 on pixels, their differences (edges) and their means (colour), and a light KL term (Rombach et al. 2022). Most of
the run uses 64x64 crops, which cost a quarter and show more edges per second; the rest uses whole pictures. Afterwards
`export.whiten` normalizes the latents.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from studio.devices.precision import autocast
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run

CHANNELS = (24, 48, 96, 128)
LATENTS = 8


def build() -> AutoencoderKL:
    """The starter's autoencoder with fresh weights: 3.1M parameters, no attention, so that it works at any size."""
    depth = len(CHANNELS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth, up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=CHANNELS, layers_per_block=1, latent_channels=LATENTS, norm_num_groups=8,
        mid_block_add_attention=False, sample_size=128, scaling_factor=1.0,
    )  # fmt: skip


def batch(pictures: np.ndarray, rows: np.ndarray, size: int, count: int, rng: np.random.Generator) -> Tensor:
    """Random pictures among `rows`, half of them mirrored, cropped to `size`: float32 (count, 3, size, size) in [-1,
    1].
    """
    out = np.empty((count, size, size, 3), np.uint8)
    for row in range(count):
        picture = pictures[rows[rng.integers(len(rows))]]
        y, x = rng.integers(0, picture.shape[0] - size + 1, 2)
        crop = picture[y : y + size, x : x + size]
        out[row] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def reconstruction_loss(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of pixels, of their horizontal and vertical differences, and of 8x8 means.

    The means teach colour, which is learnt late from differences only (shapes were sharp but had wrong colours for 10
    minutes).
    """
    loss = F.l1_loss(made, true) + F.l1_loss(F.avg_pool2d(made, 8), F.avg_pool2d(true, 8))
    for dim in (2, 3):
        loss = loss + 0.5 * F.l1_loss(made.diff(dim=dim), true.diff(dim=dim))
    return loss


def train(pictures: np.ndarray, rows: np.ndarray, folder: Path, *, device: torch.device, steps: int, minutes: float,
          peak: float = 1.5e-3, whole: float = 0.75, kl_weight: float = 1e-5, decoder_of: AutoencoderKL | None = None,
          seed: int = 0) -> AutoencoderKL:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA model.

    Args:
        pictures: uint8 (N, 128, 128, 3).
        rows: indices of the pictures to sample; one listed twice is sampled twice as often.
        whole: the fraction of the run after which whole pictures are used instead of crops.
        kl_weight: weight of the KL term per latent value.
        decoder_of: start from this model and freeze its encoder, so that existing latents stay valid.
    """
    torch.manual_seed(seed)
    model = (decoder_of or build()).to(device)
    if decoder_of:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = Ema(model, 0.998)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes,
        fixed={"data": fingerprint(pictures, rows), "decoder only": decoder_of is not None},
        changeable={"rate": peak, "kl_weight": kl_weight, "whole": whole, "seed": seed},
    )  # fmt: skip
    rng = np.random.default_rng([seed, run.step])
    for _ in run:
        run.rate(peak)
        crops = run.done < whole
        x = batch(pictures, rows, 64 if crops else 128, 16 if crops else 8, rng).to(device)  # (B, 3, S, S)
        with autocast(device):
            posterior = model.encode(x).latent_dist
            z = posterior.mode() if decoder_of else posterior.sample()  # (B, 8, S/8, S/8)
            made = model.decode(z).sample
        l1 = F.l1_loss(made.float(), x)
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = reconstruction_loss(made.float(), x) + kl_weight * kl * (LATENTS / 64)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.share(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(model)
        run.log(loss=loss, l1=l1, kl=kl)
    return ema.module
