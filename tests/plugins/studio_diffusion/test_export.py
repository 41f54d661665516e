"""Latents are brought to mean 0 and deviation 1 without a change of pictures; the folder is written whole."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from studio_diffusion import export


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def tiny(**more: Any) -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=32,
            **{"scaling_factor": 1.0, **more},
        )  # fmt: skip
        with torch.no_grad():
            vae.quant_conv.bias.add_(torch.randn(8))
    return vae.eval()


def scaled(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("scaling", [1.0, 0.18])
def test_whitened_latents_are_standard_and_reconstructions_stay(pictures: np.ndarray, scaling: float) -> None:
    vae = tiny(scaling_factor=scaling)
    with torch.no_grad():
        before = vae.encode(scaled(pictures)).latent_dist
        made = vae.decode(before.mode()).sample
        sampled = vae.decode(before.mean + before.std).sample
    export.whiten(vae, pictures)
    z = export.encode(vae, pictures)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), rtol=1e-4, atol=0)
    with torch.no_grad():
        after = vae.encode(scaled(pictures)).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, made, rtol=0, atol=1e-4)
        # the spread is brought along with the mean
        torch.testing.assert_close(vae.decode(after.mean + after.std).sample, sampled, rtol=0, atol=1e-4)


def test_encoding_is_the_mean_times_the_scaling_at_any_batch(pictures: np.ndarray) -> None:
    vae = tiny(scaling_factor=0.5)
    with torch.no_grad():
        wanted = vae.encode(scaled(pictures)).latent_dist.mean * 0.5
    for batch in (1, 4, 16):
        made = export.encode(vae, pictures, batch)
        assert made.shape == (6, 4, 16, 16)
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_saving_replaces_the_folder_whole(tiny_folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = tmp_path / "starter"
    for rest in (folder, tmp_path / ".studio.0123456789ab.tmp"):
        rest.mkdir()
        (rest / "old.txt").touch()
    vae = tiny()
    unet = UNet2DConditionModel.from_pretrained(tiny_folder / "unet", low_cpu_mem_usage=False)
    text = CLIPTextModel.from_pretrained(tiny_folder / "text_encoder")
    export.save(folder, vae, unet, text, tiny_folder / "tokenizer")
    assert [path.name for path in tmp_path.iterdir()] == ["starter"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS", "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    ]  # fmt: skip
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 3
    assert not any("old" in path.name for path in folder.rglob("*"))
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_checksums_are_those_of_coreutils(tiny_folder: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("there is no sha256sum here")
    import subprocess

    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tiny_folder, check=True, capture_output=True)
