"""What the trainers of autoencoder and U-Net see and minimise, and both for a few steps of their full size (slow)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio_diffusion import train_image, train_vae
from studio_diffusion.latent import LatentDiffusion

CPU = torch.device("cpu")


@given(seed=st.integers(0, 99), size=st.sampled_from([8, 24, 32]))
def test_a_batch_is_of_crops_of_the_given_rows(seed: int, size: int) -> None:
    """Pixels that tell their place: each crop is a window of its picture, mirrored or not, and nothing else."""
    pictures = np.zeros((4, 32, 32, 3), np.uint8)
    pictures[..., 0] = np.arange(32)[:, None] * 7
    pictures[..., 1] = np.arange(32) * 7
    pictures[..., 2] = np.arange(4)[:, None, None] * 60
    made = train_vae.batch(pictures, np.array([1, 3, 3]), size, 6, np.random.default_rng(seed))
    assert made.shape == (6, 3, size, size)
    assert made.dtype == torch.float32
    y, x, row = ((made + 1) * 127.5).round().unbind(1)
    assert set(row.unique().tolist()) <= {60.0, 180.0}
    assert (row == row[:, :1, :1]).all()
    assert (y.diff(dim=1) == 7).all()
    assert (y == y[:, :, :1]).all()
    step = x.diff(dim=2)
    assert ((step == 7) | (step == -7)).all()
    assert (step == step[:, :1, :1]).all()


def test_reconstruction_loss_is_least_at_the_truth() -> None:
    rng = torch.Generator().manual_seed(0)
    true = torch.rand(2, 3, 16, 16, generator=rng)
    assert train_vae.reconstruction_loss(true, true) == 0
    grey = train_vae.reconstruction_loss(true + 0.1, true)
    torch.testing.assert_close(grey, torch.tensor(0.2))  # pixels and means differ, edges do not
    noise = torch.randn(true.shape, generator=rng)
    losses = [float(train_vae.reconstruction_loss(true + scale * noise, true)) for scale in (0.0, 0.1, 0.2, 0.4)]
    assert all(less < more for less, more in pairwise(losses))


def test_noise_levels_are_between_the_ends_and_about_the_middle() -> None:
    levels = train_image.noise_levels(4000, torch.Generator().manual_seed(0))
    assert levels.shape == (4000,)
    assert 0 < levels.min() < 0.1
    assert 0.9 < levels.max() < 1
    assert levels.median() == pytest.approx(0.5, abs=0.05)
    assert ((levels - 0.5).abs() < 0.25).float().mean() > 0.55
    assert torch.equal(levels, train_image.noise_levels(4000, torch.Generator().manual_seed(0)))


def test_training_reads_captions_as_sampling_does(tiny_folder: Path) -> None:
    model = LatentDiffusion(tiny_folder, "cpu", torch.float32)
    encode = train_image.text_states(model.text_encoder, tiny_folder / "tokenizer")
    texts = ["a red apple", "", "一个红苹果", "apple " * 40]
    made = encode(texts)
    assert made.shape == (4, 16, 32)
    assert not made.requires_grad
    # A caption is cut where a prompt begins its second chunk.
    wanted = torch.stack([model.encode(model.tokenize(text)[0][:16]) for text in texts])
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def check(folder: Path, steps: int) -> None:
    """The checkpoint is of that many steps, each of which the optimizer took, and everything in it is finite."""
    with safetensors.safe_open(folder / "run.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["counters"])["step"] == steps
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
    taken = {
        float(value) for name, value in tensors.items() if name.startswith("optimizer.") and name.endswith(".step")
    }
    assert taken == {float(steps)}


@pytest.mark.slow
def test_autoencoder_trains_goes_on_and_then_its_decoder_alone(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)

    def train(folder: Path, steps: int, **more: Any) -> Any:
        return train_vae.train(pictures, np.array([0, 2]), folder, device=CPU, steps=steps, minutes=60, **more)

    train(tmp_path / "vae", 1)
    check(tmp_path / "vae", 1)
    vae = train(tmp_path / "vae", 2, whole=0.4)  # the second step sees whole pictures
    check(tmp_path / "vae", 2)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    again = train(tmp_path / "decoder", 1, decoder_of=vae.requires_grad_(True))
    check(tmp_path / "decoder", 1)
    same = {name for name, value in again.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if name.startswith(("encoder.", "quant_conv."))} <= same
    assert len(same) < len(before)


@pytest.mark.slow
def test_unet_trains_and_goes_on(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    captions = ["apple", "flag", "tree"]
    latents, states = torch.randn(3, 8, 16, 16, generator=rng), torch.randn(1, 5, 192, generator=rng)

    def train(steps: int) -> Any:
        return train_image.train(latents, captions, lambda texts: states.repeat(len(texts), 1, 1), tmp_path,
                                 device=CPU, steps=steps, minutes=60, batch=2)  # fmt: skip

    train(1)
    check(tmp_path, 1)
    unet = train(2)
    check(tmp_path, 2)
    with torch.no_grad():
        assert unet(latents, torch.tensor(500), states.repeat(3, 1, 1)).sample.shape == latents.shape
