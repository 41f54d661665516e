"""On a GPU, shown by the fake one: every sampler and edit as on the CPU, without a wait in a step or more operators for
more requests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import studio
from studio import devices
from studio.attention import record_backends
from studio.engine.calls.call import run_inline
from studio.engine.checkpoints.encoding import decode_state, encode_state
from studio.engine.memory.ledger import Ledger
from studio.engine.memory.model_cache import ModelCache
from studio.testing.fake_gpu import FakeGpu
from studio.testing.gpu import runs_on_a_gpu
from studio.testing.subject import Subject
from studio.weights.loading import Streaming, hosting
from studio_diffusion.ddpm import DdpmGenerator
from studio_diffusion.image import ImageGenerator
from tests.studio.engine.bench import ask

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
    assert numbers["pageable"] == 0
    assert numbers["width"] == 8
    assert numbers["launches_wide"] < 1.2 * numbers["launches"]
    assert numbers["not_recorded"] == 0
    assert numbers["recordings"] >= 2, "of one request and of eight"
    assert numbers["launches_repeated"] < 0.5 * numbers["launches"]
    assert numbers["launches_repeated_wide"] < 0.5 * numbers["launches_wide"]


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each not in ("cache", "mask"))) for each in IMAGES]
)
def test_pictures(tiny_folder: Path, name: str) -> None:
    holds(ImageGenerator(tiny_folder), SMALL | IMAGES[name])


@pytest.mark.parametrize(
    "sampler",
    ["dpmpp-2m", "ddpm", *(pytest.param(each, marks=pytest.mark.slow) for each in ("unipc", "ddim", "euler"))],
)
def test_pixels(tiny_ddpm: Path, sampler: str) -> None:
    holds(DdpmGenerator(tiny_ddpm), {"steps": 4, "sampler": sampler, "of": "pear"})


def test_requests_that_differ_in_everything_share_a_step(tiny_folder: Path) -> None:
    generator = ImageGenerator(tiny_folder)
    made = []
    with FakeGpu.installed() as gpu, torch.no_grad():
        for device in ("cpu", "gpu:0"):
            model = generator.load(studio.ModelRef(), device, "float32")
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
    model = generator.load(studio.ModelRef(), "cpu", "float16")
    assert model.unet.dtype == torch.float16
    assert model.vae.dtype == torch.float32
    nn.init.constant_(model.vae.decoder.conv_in.bias, 60_000.0)  # float16 ends at 65,504
    with torch.no_grad():
        assert model.decode(torch.randn(1, 4, 8, 8) * 10_000).shape == (1, 16, 16, 3)


def test_a_device_may_want_its_u_nets_channels_last(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = ImageGenerator(tiny_folder)
    assert devices.Cuda.channels_last
    assert generator.load(studio.ModelRef(), "cpu", "float32").unet.conv_in.weight.is_contiguous()
    monkeypatch.setattr(devices.Cpu, "channels_last", True)
    assert generator.load(studio.ModelRef(), "cpu", "float32").unet.conv_in.weight.is_contiguous(
        memory_format=torch.channels_last
    )


def stepped(generator: studio.Generator, model: Any, groups: list[list[Any]]) -> list[list[Any]]:
    """The groups of states a step later."""
    return [list(generator.step(model, states)) for states in groups]


def kinds(generator: studio.Generator, model: Any, common: dict[str, Any], unlike: list[dict[str, Any]]) -> Any:
    """States that begin alike on every device, one for each dictionary."""
    parsed = [generator.Inputs.parse(common | each) for each in unlike]
    return [generator.start(model, inputs, studio.Rng(seed)) for seed, inputs in enumerate(parsed)]


def test_steps_are_recorded_by_width_and_guidance_and_repeated(tiny_folder: Path) -> None:
    generator, steps = ImageGenerator(tiny_folder), SMALL | {"steps": 20}
    unlike = [{}, {"guidance": 1}, {"cache": True}, {"image": PICTURE, "mask": MASK}]
    made = []
    with FakeGpu.installed() as gpu, torch.no_grad():
        gpu.records_graphs = True
        for device in ("cpu", "gpu:0"):
            model = generator.load(studio.ModelRef(), device, "float32")
            a, b, c, d = kinds(generator, model, steps, unlike)
            for _ in range(6):  # three are as they are, the fourth is recorded
                (a,), (b, d) = stepped(generator, model, [[a], [b, d]])
            assert len(model.graphs) == (2 if device == "gpu:0" else 0), "guided alone; one of two guided"
            generator.preview(model, a)
            with gpu.counting() as counts, record_backends() as used:
                (d, b), (a,) = stepped(generator, model, [[d, b], [a]])  # which comes first makes no difference
            assert counts.launches["graph"] == (2 if device == "gpu:0" else 0)
            assert "sdpa-flash" in used, "told of what is repeated, too"
            for _ in range(6):  # where the third does not ask the net, the first is as when alone
                (a, c) = generator.step(model, [a, c])
            assert len(model.graphs) == (3 if device == "gpu:0" else 0), "two guided"
            made.append([each.x.cpu() for each in (a, b, c, d)])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_recordings_go_with_the_weights_and_come_again(tiny_folder: Path) -> None:
    generator, steps = ImageGenerator(tiny_folder), SMALL | {"steps": 20}
    made = []
    with FakeGpu.installed() as gpu, torch.no_grad():
        gpu.records_graphs = True
        for device in ("cpu", "gpu:0"):
            models = ModelCache(
                device, "float32", ledger=Ledger(1 << 40), host=Ledger(1 << 40) if device != "cpu" else None
            )
            model = run_inline(models.get(ask(generator, {"prompt": "a"})))
            [state] = kinds(generator, model.value, steps, [{}])
            for _ in range(6):
                [state] = generator.step(model.value, [state])
            saved, tensors = encode_state(state)
            assert models.evict_all(lambda _: 0) == 1
            assert gpu.recordings == 0
            model = run_inline(models.get(ask(generator, {"prompt": "a"})))
            [fresh] = kinds(generator, model.value, steps, [{}])
            state = decode_state(json.loads(json.dumps(saved)), tensors, fresh, device)
            for _ in range(6):
                [state] = generator.step(model.value, [state])
            assert len(model.value.graphs) == (1 if device == "gpu:0" else 0)
            made.append(state.x.cpu())
    assert torch.equal(*made)


def test_a_model_that_is_streamed_is_not_recorded(tiny_folder: Path) -> None:
    generator = ImageGenerator(tiny_folder)
    with FakeGpu.installed() as gpu, torch.no_grad():
        gpu.records_graphs = True
        with hosting(None, Streaming(limit=1 << 16)):
            model = generator.load(studio.ModelRef(), "gpu:0", "float32")
        [state] = kinds(generator, model, SMALL | {"steps": 8}, [{}])
        for _ in range(6):
            [state] = generator.step(model, [state])
        assert len(model.graphs) == 0
        assert not model.graphs.failed
