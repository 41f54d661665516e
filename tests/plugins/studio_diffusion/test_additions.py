"""`image --lora`, `--vae` and `--controlnet`: named and hashed in the recipe, replayed, refused without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import studio
from studio.errors import InputError, WeightsError
from studio.spec import Addition, JobSpec, ModelRef
from studio_diffusion.inputs import ImageInputs

from ...studio.diffusion import whole
from ...studio.diffusion.test_additions import save_lora

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]
SD = "StableDiffusionPipeline"
SMALL: dict[str, Any] = {"prompt": "a red boat", "steps": 2, "size": "64x64", "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole.save(SD, tmp_path_factory.mktemp("sd"))


def test_a_lora_is_named_hashed_and_replayed(folder: Path, tmp_path: Path) -> None:
    file = save_lora(tmp_path / "style", SD, 1)
    with studio.Studio(home=tmp_path / "home") as host:
        plain = host.submit("image", model=str(folder), **SMALL).result(300)
        made = host.submit("image", model=str(folder), lora=[f"{file}:0.5"], **SMALL).result(300)
        other = host.submit("image", model=str(folder), lora=[f"{file}:0.9"], **SMALL).result(300)
        recipe = made.recipe
        assert recipe is not None
        (added,) = recipe.spec.model.additions
        assert (added.kind, added.source, added.weight) == ("lora", str(file), 0.5)
        assert "lora" not in recipe.spec.inputs
        assert [name for name in recipe.spec.model.sha256 if name.endswith(file.name)]
        again = host.submit(JobSpec.parse(recipe.spec.to_json())).result(300)
    assert len({plain.sha256, made.sha256, other.sha256}) == 3
    assert again.sha256 == made.sha256


def test_a_controlnet_follows_a_picture(folder: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = whole.diffusers.ControlNetModel.from_unet(
            whole.made(SD).unet, conditioning_embedding_out_channels=(8, 16)
        )
        for parameter in net.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1
    net.save_pretrained(tmp_path / "net")
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    control = studio.Image.from_array(pixels)
    with studio.Studio(home=tmp_path / "home") as host:
        more = {"model": str(folder), "controlnet": str(tmp_path / "net"), "control": control}
        made = host.submit("image", **more, **SMALL).result(300)
        again = host.submit("image", **more | {"controlnet": [more["controlnet"]], "control": [control]}, **SMALL)
        assert again.result(300).sha256 == made.sha256
        several = {"controlnet": [more["controlnet"]] * 2, "control": [control] * 2, "control_scale": [1.0, 0.0]}
        second_off = host.submit("image", **more | several, **SMALL).result(300)
        assert made.recipe is not None
        assert host.submit(JobSpec.parse(made.recipe.spec.to_json())).result(300).sha256 == made.sha256
        with pytest.raises(InputError, match="takes no `control`"):
            host.submit("image", model=str(folder), control=control, **SMALL).result(300)
    stock = whole.diffusers.StableDiffusionControlNetPipeline(**whole.made(SD).components, controlnet=net)
    stock.set_progress_bar_config(disable=True)
    asked = {"prompt": "a red boat", "num_inference_steps": 2, "width": 64, "height": 64}
    image = PIL.Image.fromarray(pixels)
    theirs = stock(**asked, image=image, generator=torch.Generator().manual_seed(3)).images[0]
    assert isinstance(made, studio.Image)
    for picture in (made, second_off):
        assert np.abs(picture.samples().astype(int) - np.asarray(theirs).astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora": ["a.safetensors"]}, "`lora` needs a model of diffusers"),
        ({"model": "m", "controlnet": "net"}, "there are 1 `controlnet` and 0 `control`; give as many of each"),
        ({"model": "m", "control_scale": [1, 11]}, "each a finite number from 0 to 10"),
        ({"model": "m", "lora": ["a"] * 17}, "lora"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageInputs.parse({"prompt": "x", **given})


def test_a_model_of_studio_takes_none(tiny_folder: Path, tmp_path: Path) -> None:
    file = save_lora(tmp_path / "style", SD, 1)
    with studio.Studio(home=tmp_path / "home") as host, pytest.raises(WeightsError, match="takes no `lora`"):
        host.submit("image", prompt="octopus", model=str(tiny_folder), lora=[str(file)]).result(300)


@pytest.mark.parametrize("weight", [0.123456789, 0.00001, -1e-7, 0.0, -2.5])
def test_a_recipe_keeps_the_weight_of_a_lora(weight: float) -> None:
    ref = ModelRef(source="m", additions=(Addition(kind="lora", source="a:b.safetensors", weight=weight),))
    inputs = ImageInputs.from_recipe({"prompt": "x"}, lambda _: studio.Text("x"), ref)
    assert inputs.model_ref() == ref


@pytest.mark.parametrize("lora", ["a:11", "a:-10.5", "a:" + "9" * 400, "a" * 5000])
def test_a_lora_beyond_the_limits_is_refused(lora: str, tmp_path: Path) -> None:
    with studio.Studio(home=tmp_path) as host, pytest.raises(InputError, match="a weight is from -10 to 10"):
        host.submit("image", prompt="x", model="m", lora=[lora])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([("vae", "a", 1), ("vae", "b", 1)], "several `vae`"),
        ([("vae", "a", 3)], "a weight"),
        ([("lora", "", 1)], "without a source"),
        ([("../x", "a", 1)], "accepts none"),
    ],
)
def test_a_recipe_drops_nothing(given: list[tuple[str, str, float]], words: str) -> None:
    added = tuple(Addition(kind=kind, source=source, weight=weight) for kind, source, weight in given)
    with pytest.raises(InputError, match=words):
        ImageInputs.from_recipe({"prompt": "x"}, lambda _: studio.Text("x"), ModelRef(source="m", additions=added))
