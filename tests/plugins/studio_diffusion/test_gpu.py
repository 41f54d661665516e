"""On a GPU, shown by the fake one: every sampler and edit as on the CPU, without a wait in a step or more operators for
more requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import studio
from studio import devices
from studio.testing.fake_gpu import FakeGpu
from studio.testing.gpu import runs_on_a_gpu
from studio.testing.subject import Subject
from studio_diffusion.ddpm import DdpmGenerator
from studio_diffusion.image import ImageGenerator

PICTURE = studio.Image.from_array(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
MASK = studio.Image.from_array(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((32, 32), np.uint8)))
SMALL = {"prompt": "a red apple", "steps": 4, "size": "64x64"}
IMAGES: dict[str, dict[str, Any]] = {
    "euler, rescaled": {"sampler": "euler", "negative": "octopus", "rescale": 0.7},
    "cache": {"cache": True, "steps": 8}, "fast, of a picture": {"fast": True, "steps": 20, "image": PICTURE},
    "mask": {"image": PICTURE, "mask": MASK},
    "extended, unguided": {"image": PICTURE, "extend": "0,0,32,0", "guidance": 1},
    "box, weighed": {"image": PICTURE, "box": "0,0,20,64", "prompt": "a (red:1.4) apple BREAK octopus"},
}  # fmt: skip


def holds(generator: studio.Generator, inputs: dict[str, Any]) -> None:
    numbers = runs_on_a_gpu(Subject(generator, inputs, "cpu", "float32"), 0.0).numbers
    assert numbers["waits"] == 0
    assert numbers["width"] == 8
    assert numbers["launches_wide"] < 1.2 * numbers["launches"]


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(tiny_folder: Path, name: str) -> None:
    holds(ImageGenerator(tiny_folder), SMALL | IMAGES[name])


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "unipc", "ddim", "euler", "ddpm"])
def test_pixels(tiny_ddpm: Path, sampler: str) -> None:
    holds(DdpmGenerator(tiny_ddpm), {"steps": 4, "sampler": sampler, "of": "pear"})


def test_requests_that_differ_in_everything_share_a_step(tiny_folder: Path) -> None:
    generator = ImageGenerator(tiny_folder)
    made = []
    with FakeGpu.installed() as gpu, torch.no_grad():
        for device in ("cpu", "gpu:0"):
            model = generator.load(device, "float32")
            states: list[Any] = []
            for seed, more in enumerate(({"cache": True}, {"guidance": 1}, {"rescale": 0.5}, {})):
                inputs = generator.Inputs.parse(SMALL | {"steps": 8} | more)
                stepped = generator.step(model, states) if states else []
                states = [*stepped, generator.start(model, inputs, studio.Rng(seed))]
            for _ in range(4):  # in some of these the first does not ask the net
                with gpu.counting() as counts:
                    states = generator.step(model, states)
                assert counts.waited == 0
            made.append([state.x.cpu() for state in states])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_the_vae_is_not_in_float16(tiny_folder: Path) -> None:
    generator = ImageGenerator(tiny_folder)
    model = generator.load("cpu", "float16")
    assert model.unet.dtype == torch.float16
    assert model.vae.dtype == torch.float32
    nn.init.constant_(model.vae.decoder.conv_in.bias, 60_000.0)  # float16 ends at 65,504
    with torch.no_grad():
        assert model.decode(torch.randn(1, 4, 8, 8) * 10_000).shape == (1, 16, 16, 3)


def test_a_device_may_want_its_u_nets_channels_last(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = ImageGenerator(tiny_folder)
    assert devices.Cuda.channels_last
    assert generator.load("cpu", "float32").unet.conv_in.weight.is_contiguous()
    monkeypatch.setattr(devices.Cpu, "channels_last", True)
    assert generator.load("cpu", "float32").unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
