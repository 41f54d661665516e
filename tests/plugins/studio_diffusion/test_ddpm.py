"""The generator `ddpm` on tiny real folders: against the stock pipeline, batched against alone, and its refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler

import studio
from studio.diffusion import noise
from studio.engine import Engine, Request
from studio.errors import InputError, StudioError, UnknownName, WeightsError
from studio.recipe import PluginRef
from studio.testing import check
from studio_diffusion import export
from studio_diffusion.ddpm import DdpmGenerator

from .conftest import tiny_net

PLUGIN = PluginRef(name="test", version="1")


def pixels(image: studio.Media) -> np.ndarray:
    assert isinstance(image, studio.Image)
    return np.asarray(image.pil).astype(int)


def draw(generator: DdpmGenerator, seed: int = 0, **inputs: Any) -> np.ndarray:
    """A picture by hand, in float32."""
    parsed = generator.Inputs.parse(inputs)
    with torch.inference_mode():
        model = generator.load(parsed.model_ref(), "cpu", "float32")
        state = generator.start(model, parsed, studio.Rng(seed))
        while not state.done:
            (state,) = generator.step(model, [state])
        return pixels(generator.finish(model, state))


def stock(folder: Path, label: int | None, steps: int, sampler: str, seed: int) -> np.ndarray:
    """The same by diffusers' own pipeline and scheduler, with a seed for each step as ours have."""
    pipe = DDPMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    if label is not None:
        pipe.unet.forward = partial(pipe.unet.forward, class_labels=torch.tensor([label]))
    taken = iter(range(steps))

    class Seeded(DDPMScheduler):
        def step(self, *given: Any, **named: Any) -> Any:
            return super().step(*given, **{**named, "generator": studio.Rng(seed).fork(next(taken)).torch})

    kind = {"ddpm": Seeded, "ddim": DDIMScheduler}[sampler]
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.unet.to(torch.float32)
    (image,) = pipe(generator=torch.Generator().manual_seed(seed), num_inference_steps=steps).images
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 40), ("ddim", 10)])
@pytest.mark.parametrize(("label", "number"), [("whale", 2), ("", 3)])
def test_equals_the_stock_pipeline(tiny_ddpm: Path, sampler: str, steps: int, label: str, number: int) -> None:
    ours = draw(DdpmGenerator(tiny_ddpm), seed=5, of=label, steps=steps, sampler=sampler, guidance=1)
    theirs = stock(tiny_ddpm, number, steps, sampler, 5)
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 1  # not a blank


def saved_by_stock(folder: Path, channels: int = 3, **more: Any) -> Path:
    """A folder as `DDPMPipeline.save_pretrained` writes it, of the settings that it has by itself."""
    scheduler = DDPMScheduler(num_train_timesteps=100, **more)
    DDPMPipeline(tiny_net(channels=channels), scheduler).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("more", [{}, {"variance_type": "fixed_large", "timestep_spacing": "linspace"}])
def test_a_folder_that_diffusers_saved(tmp_path: Path, more: dict[str, Any]) -> None:
    """Epsilon, linear betas, leading times, no labels; named as an input."""
    folder = saved_by_stock(tmp_path / "stock", **more)
    ours = draw(DdpmGenerator(), seed=2, model=str(folder), steps=20, sampler="ddpm")
    assert np.abs(ours - stock(folder, None, 20, "ddpm", 2)).max() <= 1


def test_grey_pictures(tmp_path: Path) -> None:
    assert draw(DdpmGenerator(saved_by_stock(tmp_path / "grey", channels=1)), steps=2).shape == (16, 16)


def test_names_of_attention_before_diffusers_0_18(tiny_ddpm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "old"
    shutil.copytree(tiny_ddpm, folder)
    (folder / "SHA256SUMS").unlink()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, before in old.items():
        tensors = {name.replace(f".{new}.", f".{before}."): value for name, value in tensors.items()}
    save_file(tensors, file)
    assert (draw(DdpmGenerator(folder), steps=2) == draw(DdpmGenerator(tiny_ddpm), steps=2)).all()


MIXED = [
    {"of": "apple", "seed": 1, "steps": 3, "guidance": 5},
    {"of": "", "seed": 2, "steps": 7, "sampler": "ddpm"},
    {"of": "whale", "seed": 3, "steps": 5, "guidance": 1, "sampler": "unipc"},
    {"of": "pear", "seed": 2, "steps": 4, "sampler": "euler"},
    {"of": "pear", "seed": 5, "steps": 4, "sampler": "ddim", "size": "16x16"},
]


def test_batched_with_others_is_as_alone(tiny_ddpm: Path) -> None:
    """Labels, seeds, guidance, steps and samplers all differ; each picture is as if it had run alone."""
    generator = DdpmGenerator(tiny_ddpm)
    with Engine("cpu", "float32") as engine:
        asked = [
            Request.of(
                generator, generator.Inputs.parse({k: v for k, v in one.items() if k != "seed"}), one["seed"], PLUGIN
            )
            for one in MIXED
        ]
        together = [ticket.result(500) for ticket in engine.submit_many(asked)]
    for one, made in zip(MIXED, together, strict=True):
        assert np.abs(draw(generator, **one) - pixels(made)).max() <= 1
        assert made.recipe is not None
        assert made.recipe.batch_width.max > 1


@pytest.mark.parametrize("sampler", ["ddpm", pytest.param("unipc", marks=pytest.mark.slow)])
def test_holds_what_every_generator_has_to(tiny_ddpm: Path, sampler: str) -> None:
    check(DdpmGenerator(tiny_ddpm), {"steps": 4, "of": "pear", "sampler": sampler}).raise_if_failed()


def test_guidance_goes_away_from_no_label(tiny_ddpm: Path) -> None:
    generator = DdpmGenerator(tiny_ddpm)
    pictures = [draw(generator, of="apple", guidance=scale, steps=3) for scale in (1, 1.5, 8)]
    assert 0 < np.abs(pictures[1] - pictures[0]).mean() < np.abs(pictures[2] - pictures[0]).mean()
    assert (draw(generator, guidance=1, steps=3) == draw(generator, guidance=8, steps=3)).all()  # nothing to go to


def test_the_preview_comes_nearer(tiny_ddpm: Path) -> None:
    generator = DdpmGenerator(tiny_ddpm)
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    with torch.inference_mode():
        state = generator.start(model, generator.Inputs.parse({"steps": 6}), studio.Rng(0))
        assert generator.preview(model, state) is None
        seen = []
        while not state.done:
            (state,) = generator.step(model, [state])
            seen.append(pixels(generator.preview(model, state)))
    gaps = [np.abs(each - seen[-1]).mean() for each in seen]
    assert gaps[0] > gaps[3] > 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"of": "aple"}, UnknownName, "did you mean `apple`.*known: `apple`"),
        ({"size": "32x32"}, InputError, "this model draws only 16x16"),
        ({"steps": 0}, InputError, "steps"),
        ({"steps": 1001}, InputError, "steps"),
        ({"guidance": 0.5}, InputError, "guidance"),
        ({"sampler": "dpm"}, InputError, "sampler"),
    ],
)
def test_bad_inputs_are_refused(tiny_ddpm: Path, given: dict[str, Any], error: type[StudioError], words: str) -> None:
    with pytest.raises(error) as raised:
        draw(DdpmGenerator(tiny_ddpm), **given)
    assert re.search(words, str(raised.value), re.S)


def test_what_a_model_lacks_is_refused(tmp_path: Path) -> None:
    plain = DdpmGenerator(saved_by_stock(tmp_path / "plain"))
    with pytest.raises(InputError, match="has no labels") as raised:
        draw(plain, of="apple")
    assert raised.value.field == "of"
    with pytest.raises(InputError, match="`steps` is 101; the model has 100"):
        draw(plain, steps=101)
    DDPMPipeline(tiny_net(classes=5), DDPMScheduler()).save_pretrained(tmp_path / "numbers")
    numbers = DdpmGenerator(tmp_path / "numbers")  # classes without names, and none of them for no label
    assert draw(numbers, of="4", steps=1).shape == (16, 16, 3)
    with pytest.raises(InputError, match="this model needs a label"):
        draw(numbers, steps=1)


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")

    return change


def _pickled(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def _cut(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_pickled, "a pickle.*hint: .*save_pretrained"),
        (_cut, "cannot be read as safetensors"),
        (lambda folder: shutil.rmtree(folder / "unet"), "no `unet/config.json`"),
        (lambda folder: (folder / "unet" / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "labels.json").write_text('["apple"]'), "has 1 labels; the U-Net has 4 classes"),
        (_edit("unet/config.json", block_out_channels=[16, 48]), "has the shape"),
        (_edit("unet/config.json", _class_name="UNet3D"), "`UNet3D`"),
        (_edit("unet/config.json", in_channels=4), "1 or 3 channels"),
        (_edit("scheduler/scheduler_config.json", thresholding=True), "thresholding is True"),
        (_edit("scheduler/scheduler_config.json", beta_schedule="square"), "square"),
    ],
)  # fmt: skip
def test_damaged_folders_are_named(tiny_ddpm: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_ddpm, folder)
    (folder / "SHA256SUMS").unlink()  # else the host refuses it before anything is read
    damage(folder)
    generator = DdpmGenerator(folder)

    def use() -> None:
        generator.weights(studio.ModelRef())
        generator.load(studio.ModelRef(), "cpu", "float32")

    with pytest.raises(WeightsError) as raised:
        use()
    assert re.search(words, str(raised.value), re.S)
    assert "hint: " in str(raised.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    for name, words in (("model.ckpt", "may be a pickle"), ("model.safetensors", "is a file"), ("gone", "not exist")):
        if name != "gone":
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(WeightsError, match=words):
            DdpmGenerator(tmp_path / name).weights(studio.ModelRef())


def test_saves_what_it_loads(tiny_ddpm: Path, tmp_path: Path) -> None:
    """A loaded model, saved again, draws the same."""
    generator = DdpmGenerator(tiny_ddpm)
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    export.save_pixel(tmp_path / "again", model.unet, model.schedule.config, model.labels)
    assert (draw(DdpmGenerator(tmp_path / "again"), steps=3) == draw(generator, steps=3)).all()
    assert noise.config("cosine", "v") == model.schedule.config
