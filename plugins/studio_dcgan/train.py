"""Train a DCGAN: the non-saturating loss (Goodfellow et al. 2014), Adam as in Radford et al. 2015, DiffAugment.

A discriminator step, then a generator step. One optimizer has the parameters of both, and skips those without
gradients, so that one checkpoint of `studio.training` has everything. The result is the EMA generator.

Try it: `studio train dcgan --minutes 1`
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from studio.devices.precision import autocast
from studio.files import write_atomically
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run
from studio_dcgan.augment import augment
from studio_dcgan.model import SIZE, Discriminator, GeneratorNet

BETAS = (0.5, 0.999)
"""Adam's, as in the paper."""


@torch.no_grad()
def calibrated(generator: nn.Module, batches: int = 16, batch: int = 64, seed: int = 0) -> GeneratorNet:
    """A copy in evaluation mode with batch norm statistics recomputed from its own pictures.

    Averaged weights need this: the running statistics belong to the latest weights (Izmailov et al. 2018, section 3.2).
    """
    made = cast(GeneratorNet, copy.deepcopy(generator).train())
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    rng = torch.Generator().manual_seed(seed)
    device = next(made.parameters()).device
    for _ in range(batches):
        z = torch.randn(batch, made.latent, generator=rng).to(device)
        labels = torch.randint(max(made.classes, 1), (batch,), generator=rng).to(device)
        made(z, labels if made.classes else None)
    for norm in norms:
        norm.momentum = 0.1  # PyTorch's default
    return made.eval()


@torch.no_grad()
def grid(generator: GeneratorNet, side: int = 8, seed: int = 0) -> PIL.Image.Image:
    """A grid of `side` by `side` pictures of one seed, with classes spread evenly."""
    device = next(generator.parameters()).device
    count = side * side
    z = torch.randn(count, generator.latent, generator=torch.Generator().manual_seed(seed)).to(device)
    labels = torch.arange(count, device=device) * generator.classes // count if generator.classes else None
    pictures = generator.pixels(generator.condition(z, labels)).cpu().numpy()  # (N, 64, 64, 3)
    rows = pictures.reshape(side, side, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4)
    return PIL.Image.fromarray(rows.reshape(side * SIZE, side * SIZE, 3))


def save_grid(generator: GeneratorNet, path: Path) -> None:
    """Write the grid as a PNG."""
    out = io.BytesIO()
    grid(generator).save(out, "PNG")
    write_atomically(path, out.getvalue())


def draw(pictures: np.ndarray, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pictures of uint8 (N, H, W, 3), half of them mirrored: (count, 3, H, W) in [-1, 1]; and their rows,
    (count,).
    """
    rows = torch.randint(len(pictures), (count,), generator=rng)
    x = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    mirrored = torch.rand(count, generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x), rows


def train(pictures: np.ndarray, labels: Sequence[str], folder: Path, *, device: torch.device, steps: int,
          minutes: float, batch: int = 16, rate: float = 5e-4, width: int = 32, decay: float = 0.998,
          grid_every: int = 500, seed: int = 0) -> tuple[GeneratorNet, tuple[str, ...]]:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA generator with recomputed batch norms, and the class
    names.

    Besides the run's own files, `folder` gets `samples-STEP.png` every `grid_every` steps.

    Args:
        pictures: uint8 (N, 64, 64, 3).
        labels: one per picture; all empty for an unconditional model.
        batch: batch size over all processes of the run.
        rate: peak learning rate of both networks.

    Raises:
        StudioError: a loss is not finite, or the run in `folder` has other data or another width.
    """
    torch.manual_seed(seed)
    names = tuple(dict.fromkeys(label for label in labels if label))
    known = torch.tensor([names.index(label) for label in labels]) if names else None  # (N,)
    generator, discriminator = GeneratorNet(width=width, classes=len(names)), Discriminator(width, len(names))
    both = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    both.to(device).train()
    optimizer = torch.optim.Adam(both.parameters(), rate, BETAS, fused=True)
    ema = Ema(generator, decay)
    run = Run(
        folder, both, optimizer, ema, steps=steps, minutes=minutes,
        fixed={"labels": names, "data": fingerprint(pictures, list(labels)), "width": width},
        changeable={"batch": batch, "rate": rate, "seed": seed},
    )  # fmt: skip
    batch = max(2, batch // run.peers.count)
    for step in run:
        run.rate(rate)
        rng = run.noise(seed)
        real, rows = draw(pictures, batch, rng)
        real = real.to(device)
        given = None if known is None else known[rows].to(device)
        z = torch.randn(batch, generator.latent, generator=rng).to(device)
        with autocast(device):
            made = generator(z, given)  # (B, 3, 64, 64)
            on_real = discriminator(augment(real, rng), given).float()
            on_made = discriminator(augment(made.detach(), rng), given).float()
        d_loss = softplus(-on_real).mean() + softplus(on_made).mean()
        optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        run.share(discriminator.parameters())
        optimizer.step()

        discriminator.requires_grad_(False)
        with autocast(device):
            scores = discriminator(augment(made, rng), given).float()
        g_loss = softplus(-scores).mean()
        optimizer.zero_grad(set_to_none=True)
        g_loss.backward()
        run.share(generator.parameters())
        discriminator.requires_grad_(True)
        optimizer.step()
        ema.update(generator)
        run.log(d_loss=d_loss, g_loss=g_loss, real=on_real.mean(), made=on_made.mean())
        if (step + 1) % grid_every == 0 and not run.peers.rank:
            save_grid(calibrated(ema.module), folder / f"samples-{step + 1:07d}.png")
    return calibrated(ema.module), names
