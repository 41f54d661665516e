"""Every scheduler config of diffusers: a picture equal to diffusers' own, or a refusal that names what is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import studio
from studio.diffusion import noise
from studio.diffusion.layout import part, tensors_of
from studio.errors import WeightsError
from studio_diffusion import export
from studio_diffusion.ddpm import DdpmGenerator
from studio_diffusion.image import ImageGenerator

from .conftest import tiny_net

CLASSES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
HONOURED: list[dict[str, Any]] = [
    {}, {"beta_schedule": "scaled_linear"}, {"beta_schedule": "squaredcos_cap_v2"}, {"beta_end": 0.05}, ZERO,
    {"trained_betas": np.linspace(1e-4, 0.03, 500).tolist(), "num_train_timesteps": 500},
    {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"num_train_timesteps": 90},
    {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}, {"steps_offset": 1, "clip_sample": False},
    {"set_alpha_to_one": False, "clip_sample": False}, {"clip_sample_range": 0.5},
    {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear", "clip_sample": False},
]  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((kind, {}, "_class_name") for kind in CLASSES if kind not in noise.CLASSES),
    ("MyOwnScheduler", {}, "_class_name"),
    ("DDIMScheduler", {"thresholding": True}, "thresholding"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type"),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type"),
    ("DDPMScheduler", {"prediction_type": "flow_prediction"}, "prediction_type"),
    ("DDPMScheduler", {"beta_schedule": "unheard"}, "unheard"),
    ("DDPMScheduler", {"timestep_spacing": "odd"}, "timestep_spacing"),
    ("DDPMScheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
    ("DDPMScheduler", {"num_train_timesteps": "many"}, "num_train_timesteps"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stock") / "model"
    export.save_pixel(made, tiny_net(), noise.config("linear", "epsilon"), [])
    return made


def scheduled(folder: Path, kind: str, changes: dict[str, Any]) -> DdpmGenerator:
    """The model with another scheduler."""
    stock = getattr(diffusers, kind) if kind in noise.CLASSES else diffusers.DDPMScheduler
    config = {name: value for name, value in dict(stock().config).items() if not name.startswith("_")} | changes
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **config}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))
    return DdpmGenerator(folder)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [*(("DDIMScheduler", each) for each in HONOURED), *(("DDPMScheduler", each) for each in HONOURED[::4])],
    ids=lambda each: each if isinstance(each, str) else "-".join(map(str, each)),
)
@torch.inference_mode()
def test_a_picture_is_that_of_diffusers(folder: Path, kind: str, changes: dict[str, Any]) -> None:
    generator = scheduled(folder, kind, changes)
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    state = generator.start(model, generator.Inputs.parse({"steps": 5, "sampler": "ddim"}), studio.Rng(3))
    x = state.x[None].clone()
    while not state.done:
        (state,) = generator.step(model, [state])
    stock = DDIMScheduler.from_config(
        getattr(diffusers, kind)(**changes).config if kind == "DDIMScheduler" else changes
    )
    if kind == "DDPMScheduler":  # its config has no word on these, and a DDIM pipeline then takes what it usually takes
        stock = DDIMScheduler.from_config(
            {**diffusers.DDPMScheduler(**known(changes)).config, "set_alpha_to_one": True}
        )
    stock.set_timesteps(5)
    for t in stock.timesteps:
        x = stock.step(model.unet(x, t).sample, t, x).prev_sample
    theirs = ((x[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(generator.finish(model, state).samples().astype(int) - theirs).max() <= 1
    assert theirs.std() > 1


def known(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if name != "set_alpha_to_one"}


@pytest.mark.parametrize(("kind", "changes", "word"), REFUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_others_are_refused_by_name(folder: Path, kind: str, changes: dict[str, Any], word: str) -> None:
    generator = scheduled(folder, kind, changes)
    with pytest.raises(WeightsError, match=word):
        generator.load(studio.ModelRef(), "cpu", "float32")


def test_a_part_that_is_not_known_is_refused(folder: Path) -> None:
    generator = scheduled(folder, "DDIMScheduler", {})
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="`LDMPipeline` with the component `vqvae`"):
        generator.load(studio.ModelRef(), "cpu", "float32")


CHANGES: list[tuple[str, Any]] = [
    ("prediction_type", "epsilon"),
    ("num_train_timesteps", 500), ("algorithm_type", "sde-dpmsolver++"), ("solver_order", 3), ("solver_type", "heun"),
    ("lower_order_final", False), ("final_sigmas_type", "sigma_min"), ("variance_type", "learned"),
    ("use_karras_sigmas", True), ("use_exponential_sigmas", True), ("use_beta_sigmas", True), ("use_lu_lambdas", True),
    ("use_dynamic_shifting", True), ("thresholding", True), ("euler_at_final", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_image_refuses_every_change_of_its_schedule_by_name(tiny_folder: Path, name: str, value: Any) -> None:
    with changed(tiny_folder, {name: value}) as generator, pytest.raises(WeightsError, match=name):
        generator.load(studio.ModelRef(), "cpu", "float32")


class changed:
    """`image` with a change of its scheduler's config, which is undone afterwards."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / "scheduler" / "scheduler_config.json"
        self.was = self.path.read_text()
        self.path.write_text(json.dumps(json.loads(self.was) | changes))

    def __enter__(self) -> ImageGenerator:
        return ImageGenerator(self.folder)

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.was)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@torch.inference_mode()
def test_image_takes_over_the_shift(tiny_folder: Path, shift: float) -> None:
    stock = diffusers.DPMSolverMultistepScheduler.from_config({**export.scheduler().config, "flow_shift": shift})
    stock.set_timesteps(6)
    with changed(tiny_folder, {"flow_shift": shift}) as generator:
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        inputs = generator.Inputs.parse({"prompt": "octopus", "steps": 6, "size": "64x64"})
        assert generator.facts(model, inputs)["noise_schedule"]["shift"] == shift
        levels = generator.start(model, inputs, studio.Rng(1)).levels
    np.testing.assert_allclose(levels, stock.sigmas.numpy(), rtol=1e-6)


def test_shards_that_an_index_names_go_before_an_older_whole_file(tmp_path: Path) -> None:
    names = ["model-00001-of-00002", "model-00002-of-00002", "model", "model.fp16"]
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    assert [file.stem for file in tensors_of(tmp_path)] == ["model-00001-of-00002", "model-00002-of-00002", "model"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": f"{names[0]}.safetensors", "b": f"{names[1]}.safetensors"}}))
    assert [file.stem for file in tensors_of(tmp_path)] == names[:2]
    index.write_text("[]")
    with pytest.raises(WeightsError, match="is not a JSON object"):
        tensors_of(tmp_path)
    assert part(tmp_path, "unet") == tmp_path / "unet"
    (tmp_path / "config.json").touch()
    assert part(tmp_path, "unet") == tmp_path
