"""IP-Adapters: what diffusers draws with them, or refused with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import studio
from studio.diffusion.additions import Additions
from studio.diffusion.folders import load, weight_files
from studio.errors import InputError, WeightsError
from studio.spec import JobSpec
from studio_diffusion.inputs import ImageInputs

from ..diffusion import tiny, whole
from ..diffusion.test_folders import drawn, stock
from ..diffusion.tiny.parts import clip_vision

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
SD = "StableDiffusionPipeline"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))


def tensors(unet: Any, seed: int = 0, cross: int = 32) -> dict[str, torch.Tensor]:
    """Random weights of an IP-Adapter of 4 tokens, under the published names."""
    draw = torch.Generator().manual_seed(seed)
    made = {"image_proj.proj.weight": torch.randn(4 * cross, 32, generator=draw) * 0.3,
            "image_proj.proj.bias": torch.zeros(4 * cross), "image_proj.norm.weight": torch.ones(cross),
            "image_proj.norm.bias": torch.zeros(cross)}  # fmt: skip
    for i, module in enumerate(each for name, each in unet.named_modules() if name.endswith("attn2")):
        for part in "kv":
            shape = module.to_k.weight.shape[0], cross
            made[f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight"] = torch.randn(shape, generator=draw) * 0.3
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion in `model`, and two IP-Adapters in `models`, as published ones lie."""
    folder = tmp_path_factory.mktemp("ip")
    whole.save(SD, folder / "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        clip_vision().save_pretrained(folder / "models" / "image_encoder")
    for i in range(2):
        save_file(tensors(whole.made(SD).unet, i), folder / "models" / f"{i}.safetensors")
    return folder


def theirs(place: Path, scales: list[float]) -> Any:
    pipe = stock(place / "model")
    names = [f"{i}.safetensors" for i in range(len(scales))]
    pipe.load_ip_adapter(str(place / "models"), subfolder="", weight_name=names, local_files_only=True)
    pipe.set_ip_adapter_scale(scales)
    return pipe


@pytest.mark.parametrize("scales", [[0.6], [0.5, 1.2]])
def test_a_picture_is_a_prompt_as_in_diffusers(place: Path, scales: list[float]) -> None:
    adapters = tuple((place / "models" / f"{i}.safetensors", scale) for i, scale in enumerate(scales))
    given = {"ip_adapter_image": [PICTURE] * len(scales)}
    with tiny.one_thread():
        ours = drawn(load(place / "model", "cpu", "float32", Additions(ip_adapters=adapters)).pipe, **given)
        assert np.array_equal(ours, drawn(theirs(place, scales), **given))
        assert not np.array_equal(ours, drawn(load(place / "model", "cpu", "float32").pipe))
    files = weight_files(place / "model", Additions(ip_adapters=adapters))
    assert {path for path, _ in adapters} < set(files)
    assert place / "models" / "image_encoder" / "config.json" in files


def test_a_recipe_names_it_and_two_requests_share_it(place: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "prompt": "a boat", "model": str(place / "model"), "steps": 2, "size": "64x64", "seed": 3,
        "ip_adapter": [f"{place / 'models' / '0.safetensors'}:0.6"], "ip_image": studio.Image(PICTURE),
    }  # fmt: skip
    with studio.Studio(home=tmp_path / "home") as host:
        made = host.submit("image", **asked).result(300)
        other = host.submit("image", **asked | {"ip_adapter": [asked["ip_adapter"][0].replace("0.6", "0.1")]}).result(
            300
        )
        assert made.recipe is not None
        again = host.submit(JobSpec.parse(made.recipe.spec.to_json())).result(300)
    assert made.sha256 == again.sha256 != other.sha256
    assert [name for name in made.recipe.spec.model.sha256 if name.endswith("0.safetensors")]
    stock_call = theirs(place, [0.6])
    with tiny.one_thread():
        expected = stock_call("a boat", num_inference_steps=2, width=64, height=64, ip_adapter_image=PICTURE,
                              generator=torch.Generator().manual_seed(3)).images[0]  # fmt: skip
    assert np.abs(made.samples().astype(int) - np.asarray(expected).astype(int)).max() <= 2
    with pytest.raises(InputError, match="there are 1 `ip_adapter` and 0 `ip_image`; give as many of each"):
        ImageInputs.parse({name: each for name, each in asked.items() if name not in ("seed", "ip_image")})


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    good = tensors(whole.made(SD).unet)
    lone, file = tmp_path / "lone.safetensors", place / "models" / "bad.safetensors"
    save_file(good, lone)
    cases = [
        (lone, good, "needs its image encoder"),
        (file, {"unet.a": torch.zeros(1)}, "is not an IP-Adapter of a known kind: it has `unet.a`"),
        (file, {name: each for name, each in good.items() if "proj" in name}, "it has no `ip_adapter`"),
        (file, tensors(whole.made(SD).unet, cross=48), "does not fit this `StableDiffusionPipeline`"),
        (file, good | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(1)}, "not an IP-Adapter of a known kind"),
    ]
    try:
        for path, state, reason in cases:
            save_file(state, path)
            with pytest.raises(WeightsError, match=reason):
                load(place / "model", "cpu", "float32", Additions(ip_adapters=((path, 1.0),)))
    finally:
        file.unlink(missing_ok=True)
    folder = whole.save("FluxPipeline", tmp_path / "flux")
    with pytest.raises(WeightsError, match=r"a `FluxPipeline` takes no IP-Adapter"):
        load(folder, "cpu", "float32", Additions(ip_adapters=((place / "models" / "0.safetensors", 1.0),)))
