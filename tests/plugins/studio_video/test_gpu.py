"""On a GPU, shown by the fake one: clips come out as on the CPU, and nothing in a step of Studio's own model waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.testing.fake_gpu import FakeGpu
from studio.testing.gpu import runs_on_a_gpu
from studio.testing.samples import sample_media
from studio.testing.subject import Subject
from studio_video import starter
from studio_video.packing import AttentionPattern, _frame_order
from studio_video.video import PICTURES, VideoGenerator

from .test_stock import SMALL as STOCK
from .test_stock import folders, pipes  # noqa: F401  (fixtures)

PICTURE = studio.Image.from_array(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
SMALL = {"prompt": "a dog bouncing", "steps": 3, "frames": 3, "size": "64x64"}
CLIPS: dict[str, dict[str, Any]] = {
    "full": {}, "window": {"attention": "window", "frames": 9}, "factorised": {"attention": "factorised"},
    "picture": {"image": PICTURE}, "to": {"to": PICTURE}, "extend": {"extend": sample_media(studio.Video)},
    "loop": {"loop": True, "guidance": 1, "sampler": "euler"},
}  # fmt: skip
STOCK_WAITS = {"ltx": 0, "wan": 1, "cog": 3, "wan-image": 0, "cog-image": 3}
"""Of diffusers' own pipelines within a step, after the first: their schedulers read numbers from the device."""


def numbers(generator: studio.Generator, inputs: dict[str, Any]) -> Any:
    return runs_on_a_gpu(Subject(generator, inputs, "cpu", "float32"), 0.0).numbers


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each not in ("full", "picture"))) for each in CLIPS]
)
def test_clips(tiny_video: Path, name: str) -> None:
    found = numbers(VideoGenerator(tiny_video, PICTURES), SMALL | CLIPS[name])
    assert found["waits"] == found["pageable"] == found["not_recorded"] == 0
    assert found["recordings"] >= 2, "of one request and of eight"
    assert found["launches_repeated"] < 0.5 * found["launches"]
    assert found["width"] == 8
    grows = found["launches_wide"] - found["launches"]
    assert grows < 0.2 * 500, "of the starter's 500 in six layers; this net has two"


def test_clips_of_several_passes(tiny_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "WINDOW", 6)
    monkeypatch.setattr(starter, "OVERLAP", 3)
    found = numbers(VideoGenerator(tiny_video, PICTURES), SMALL | {"frames": 11})
    assert found["waits"] == 0
    assert found["launches_wide"] < 1.2 * found["launches"]
    assert found["not_recorded"] == 0


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each not in ("ltx", "cog-image"))) for each in STOCK_WAITS]
)
def test_stock_pipelines(folders: dict[str, Path], name: str) -> None:  # noqa: F811
    more: dict[str, Any] = {"image": PICTURE} if "image" in name else {}
    more |= {"frames": 5} if name == "wan-image" else {}
    generator = VideoGenerator(folders[name])
    assert numbers(generator, STOCK | more)["apart"] == 0
    inputs = generator.Inputs.parse(STOCK | more)
    with FakeGpu.installed() as gpu, torch.inference_mode():
        model = generator.load(studio.ModelRef(), "gpu:0", "float32")
        states = generator.step(model, [generator.start(model, inputs, studio.Rng(0))])
        with gpu.counting() as counts:
            generator.step(model, states)
    assert counts.waited == STOCK_WAITS[name]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("ltx", "bfloat16"), ("cog-image", "float16")]
    + [
        pytest.param(name, dtype, marks=pytest.mark.slow)
        for name, dtype in (("ltx", "float16"), ("cog", "bfloat16"), ("cog", "float16"), ("cog-image", "bfloat16"),
                            ("ltx-image", "bfloat16"), ("ltx-image", "float16"))
    ],
)  # fmt: skip
def test_stock_pipelines_in_short_dtypes(folders: dict[str, Path], name: str, dtype: str) -> None:  # noqa: F811
    """All their parts are of the dtype, also after a request with a picture; but for a VAE in float16."""
    generator = VideoGenerator(folders[name.removesuffix("-image") if name == "ltx-image" else name])
    inputs = generator.Inputs.parse(STOCK | {"steps": 1} | ({"image": PICTURE} if "image" in name else {}))
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", dtype)
        (state,) = generator.step(model, [generator.start(model, inputs, studio.Rng(1))])
        generator.finish(model, state)
    assert model.pipe.transformer.dtype == model.pipe.text_encoder.dtype == getattr(torch, dtype)
    assert model.pipe.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)


def test_groups_of_frames_are_made_once_for_all_layers_and_steps() -> None:
    grids = ((9, 4, 4), (9, 4, 4))
    first = _frame_order(grids, AttentionPattern("window"), 1, "cpu")
    assert _frame_order(grids, AttentionPattern("window"), 1, "cpu")[0] is first[0]
    assert _frame_order(grids, AttentionPattern("window"), 3, "cpu")[0] is not first[0]
    assert sorted(first[0].tolist()) == list(range(2 * 9 * 16))
    assert not first[0].is_inference(), "training may ask for them later"


def test_clips_that_differ_in_everything_take_hardly_more_launches_than_one(
    tiny_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "WINDOW", 6)
    monkeypatch.setattr(starter, "OVERLAP", 3)
    unlike: list[dict[str, Any]] = [
        {"frames": 11, "size": "64x64"}, {"frames": 9, "size": "64x80", "prompt": "a cat"},
        {"frames": 12, "size": "80x64", "prompt": "a red ball rolls"}, {"frames": 8, "size": "80x80", "guidance": 1},
        {"frames": 10, "size": "64x64", "loop": True}, {"frames": 7, "size": "96x80", "sampler": "euler"},
        {"frames": 8, "size": "96x64", "negative": "octopus"}, {"frames": 13, "size": "64x64", "steps": 9},
    ]  # fmt: skip
    generator, launches, made = VideoGenerator(tiny_video, PICTURES), [], []
    with FakeGpu.installed() as gpu, torch.no_grad():
        for device in ("cpu", "gpu:0"):
            model = generator.load(studio.ModelRef(), device, "float32")
            parsed = [generator.Inputs.parse(SMALL | {"steps": 6} | each) for each in unlike]
            states = [generator.start(model, inputs, studio.Rng(seed)) for seed, inputs in enumerate(parsed)]
            assert len({generator.batch_key(state) for state in states}) == 1
            for some in (states[:1], states):
                generator.step(model, some)
                with gpu.counting() as counts:
                    generator.step(model, some)
                launches.append(counts.launched)
            gpu.record_after(1)
            for _ in range(4):
                states = list(generator.step(model, states))
            made.append([state.x.cpu() for state in states])
        assert len(model.graphs) == 1
    assert launches[:2] == [0, 0], "on the CPU"
    assert launches[3] - launches[2] < 0.2 * 500, "of the starter's 500 in six layers; this net has two"
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
