"""Models in one file: the weights that they were made from, or a sentence about what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import studio
from studio.diffusion import layout
from studio.diffusion.additions import Additions
from studio.diffusion.folders import load, weight_files
from studio.diffusion.single_files import CONFIGS, configs, family_of
from studio.errors import WeightsError
from studio.loaders import components as kinds
from studio.loaders.single_file import tensors_for
from studio.spec import Addition

from . import original, tiny, whole
from .test_folders import drawn, state_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
SD = "StableDiffusionPipeline"
PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd1-inpaint": {"unet": 859_535_364, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sdxl-inpaint": {"unet": 2_567_478_084, "vae": 83_653_863, "text_encoder": 123_060_480,
                     "text_encoder_2": 694_659_840},
    "sdxl-refiner": {"unet": 2_259_526_660, "vae": 83_653_863, "text_encoder_2": 694_659_840},
}  # fmt: skip
"""Of the published models."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole.save(SD, tmp_path_factory.mktemp("base"))


def test_there_are_configs_of_these_families() -> None:
    assert {file.stem for file in CONFIGS.glob("*.json")} == PARAMETERS.keys()


@pytest.mark.parametrize(
    "family", [each if each in ("sd1", "sdxl") else pytest.param(each, marks=pytest.mark.slow) for each in PARAMETERS]
)
def test_a_familys_configs_give_the_published_number_of_parameters(family: str) -> None:
    found = {}
    with configs(family, {"prediction_type": "v_prediction"}) as folder:
        for name, value in layout.components(folder, layout.index_of(folder)).items():
            kind = kinds.component_class(folder / layout.INDEX, name, value)
            if not issubclass(kind, torch.nn.Module):
                made = kinds.other(kind, folder / name)
                if "tokenizer" in name:
                    assert made("a photo of a red apple").input_ids == [49406, 320, 1125, 539, 320, 736, 3055, 49407]
                    assert made.model_max_length == 77
                else:
                    assert made.config.prediction_type == "v_prediction"
                continue
            with torch.device("meta"):
                module = kinds.build(kind, folder / name, torch.float32)
            found[name] = sum(each.numel() for each in module.parameters())
    assert found == PARAMETERS[family]


def equal(ours: Any, theirs: Any) -> bool:
    one, two = state_of(ours), state_of(theirs)
    return one.keys() == two.keys() and all(torch.equal(each, two[name]) for name, each in one.items())


def test_a_whole_stable_diffusion_under_its_original_names(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(original.stable_diffusion(whole.made(SD)), file)
    made = load(file, "cpu", "float32", Additions(base=base)).pipe
    plain = load(base, "cpu", "float32").pipe
    assert equal(made, plain)
    with tiny.one_thread():
        assert np.array_equal(drawn(made), drawn(plain))
    (tmp_path / "pulled").mkdir()
    file.rename(file := tmp_path / "pulled" / file.name)  # as a hub has it, in a folder
    inside = {"unet", "vae", "text_encoder"}
    ref = studio.ModelRef(source=str(file.parent), additions=(Addition(kind="base", source=str(base)),))
    files = weight_files(file.parent, Additions.of(ref))
    assert file in files
    assert {path.parent.name for path in files if path.suffix == ".safetensors" and path != file} == {"safety_checker"}
    assert inside <= {path.parent.name for path in files}  # their configs


def test_a_whole_stable_diffusion_xl_under_its_original_names(tmp_path: Path) -> None:
    folder = whole.save("StableDiffusionXLPipeline", tmp_path / "base")
    save_file(original.stable_diffusion_xl(whole.made("StableDiffusionXLPipeline")), tmp_path / "xl.safetensors")
    made = load(tmp_path / "xl.safetensors", "cpu", "float32", Additions(base=folder)).pipe
    assert equal(made, load(folder, "cpu", "float32").pipe)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux_transformer_under_its_original_names(prefix: str) -> None:
    """By shapes alone: diffusers converts only its full width."""
    with torch.device("meta"):
        module = whole.diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    state = module.state_dict()
    tensors = {f"{prefix}{name}": each for name, each in original.flux(state).items()}
    found = tensors_for(module, tensors)
    assert found is not None
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in state.items()}
    tensors.pop(f"{prefix}img_in.weight")
    assert tensors_for(module, tensors) is None


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_one_component_in_diffusers_own_names(base: Path, tmp_path: Path, part: str) -> None:
    (stored,) = (base / part).glob("*.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        other = whole.stable_diffusion()
    save_file(getattr(other, part).state_dict(), tmp_path / stored.name, {"format": "pt"})
    made = load(tmp_path / stored.name, "cpu", "float32", Additions(base=base)).pipe
    theirs, plain = state_of(other), state_of(load(base, "cpu", "float32").pipe)
    for name, each in state_of(made).items():
        assert torch.equal(each, (theirs if name.startswith(f"{part}.") else plain)[name])


def test_a_file_of_another_model_than_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for tensors in (whole.made("FluxPipeline").transformer.state_dict(), {"a": torch.zeros(1)}):
        save_file(tensors, file)
        with pytest.raises(
            WeightsError, match=r"has no component of `.*`, a `StableDiffusionPipeline`: it has \d+ tensors"
        ):
            load(file, "cpu", "float32", Additions(base=base))


def shapes(**changes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace("__", "."): torch.empty(shape, device="meta") for name, shape in changes.items()}


def test_the_family_is_told_by_names_and_shapes() -> None:
    net, path = "model__diffusion_model__input_blocks__0__0__weight", Path("f.safetensors")
    first = {"cond_stage_model__transformer__text_model__embeddings__position_embedding__weight": (77, 768)}
    second = {"cond_stage_model__model__positional_embedding": (77, 1024)}
    xl = {"conditioner__embedders__1__model__positional_embedding": (77, 1280)}
    for tensors, header, wanted in [
        (shapes(**{net: (320, 4, 3, 3)}, **first), {}, ("sd1", {})),
        (shapes(**{net: (320, 9, 3, 3)}, **first), {}, ("sd1-inpaint", {})),
        (shapes(**{net: (320, 4, 3, 3)}, **second), {"modelspec.prediction_type": "v"},
         ("sd2", {"prediction_type": "v_prediction"})),
        (shapes(**{net: (320, 4, 3, 3)}, **xl), {}, ("sdxl", {})),
        (shapes(**{net: (320, 4, 3, 3)}, **xl, v_pred=(0,), ztsnr=(0,)), {},
         ("sdxl", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})),
        (shapes(**{net: (384, 4, 3, 3)}, conditioner__embedders__0__model__positional_embedding=(77, 1280)), {},
         ("sdxl-refiner", {})),
    ]:  # fmt: skip
        assert family_of(path, tensors, header) == wanted
    with pytest.raises(WeightsError, match="does not say whether it predicts epsilon or v"):
        family_of(path, shapes(**{net: (320, 4, 3, 3)}, **second), {})
    for tensors in (shapes(**{net: (320, 8, 3, 3)}, **first), shapes(a=(1,)), {}):
        with pytest.raises(WeightsError, match=r"of no family that is known whole: it has \d tensors"):
            family_of(path, tensors, {})


def test_a_file_that_lacks_a_component_is_refused(tmp_path: Path) -> None:
    save_file(original.stable_diffusion(whole.made(SD)), tmp_path / "tiny.safetensors")  # of its family, but too small
    for what in (load, weight_files):
        given = ("cpu", "float32") if what is load else ()
        with pytest.raises(WeightsError, match=r"tiny.safetensors` has no whole `\w+` of its family"):
            what(tmp_path / "tiny.safetensors", *given)


def test_two_bases_are_refused(base: Path) -> None:
    one = Addition(kind="base", source=str(base))
    with pytest.raises(WeightsError, match="`base` cannot be added to the model, or not twice"):
        Additions.of(studio.ModelRef(source="x", additions=(one, one)))


def test_a_single_file_that_cannot_be_read_is_refused(tmp_path: Path, base: Path) -> None:
    for name, reason in [("a.safetensors", "cannot be read as safetensors"), ("a.ckpt", "a pickle, which can run code"),
                         ("a.gguf", "has only the denoiser of a model")]:  # fmt: skip
        (tmp_path / name).write_bytes(b"GGUF")
        with pytest.raises(WeightsError, match=reason):
            load(tmp_path / name, "cpu", "float32")
    with pytest.raises(WeightsError, match="does not fit the model's `UNet2DConditionModel`"):
        load(tmp_path / "a.gguf", "cpu", "float32", Additions(base=base))


def test_a_gguf_transformer_gives_what_its_decoded_weights_give(tmp_path: Path) -> None:
    import gguf

    folder = whole.save("FluxPipeline", tmp_path / "base")
    state = whole.made("FluxPipeline").transformer.state_dict()
    writer = gguf.GGUFWriter(str(tmp_path / "flux.gguf"), "flux")
    decoded = {}
    for name, tensor in state.items():
        data = tensor.numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            data = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, data)
        decoded[name] = torch.from_numpy(np.array(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(decoded, tmp_path / "flux.safetensors")
    with tiny.one_thread():
        quantized, plain = (drawn(load(tmp_path / f"flux.{kind}", "cpu", "float32", Additions(base=folder)).pipe,
                                  "FluxPipeline") for kind in ("gguf", "safetensors"))  # fmt: skip
    np.testing.assert_allclose(quantized, plain, atol=1e-4)
