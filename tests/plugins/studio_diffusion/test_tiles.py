"""Pictures larger than a tile: what the VAE makes of them piece by piece is what it makes of them whole."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL

import studio
from studio.diffusion.layout import tensors_of
from studio_diffusion.image import STARTER
from studio_diffusion.latent import TILE, attention_name, build_vae


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    build, files = partial(build_vae, STARTER / "vae"), tensors_of(STARTER / "vae")
    made: AutoencoderKL = studio.module(build, files, rename=attention_name, device="cpu", dtype=torch.float32)
    return made


def picture(width: int, height: int) -> torch.Tensor:
    """Rings of many colours around a corner: float32 (1, 3, H, W) in [-1, 1]."""
    y, x = np.mgrid[:height, :width]
    hue = np.hypot(x, y) * 2 % 256
    rgb = np.asarray(
        PIL.Image.fromarray(np.stack([hue, hue * 0 + 160, hue * 0 + 240], -1).astype("u1"), "HSV").convert("RGB")
    )
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def through(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = vae.decode(vae.encode(x).latent_dist.mean).sample
    return made


@pytest.mark.parametrize(("width", "height"), [(TILE + 128, 64), (64, TILE + 128)])
def test_no_seams(vae: AutoencoderKL, width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(width, height)
    tiled = through(vae, x)
    monkeypatch.setattr(vae, "use_tiling", False)
    whole = through(vae, x)
    assert tiled.shape == whole.shape == x.shape
    error = (tiled - whole).square().mean((0, 1, 2 if width > height else 3)).max().item()  # of the worst line
    assert 10 * math.log10(4 / error) > 35


def test_a_tile_is_passed_whole(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(TILE, 64)
    tiled = through(vae, x)
    monkeypatch.setattr(vae, "use_tiling", False)
    assert torch.equal(tiled, through(vae, x))
