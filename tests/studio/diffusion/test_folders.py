"""Folders as people have them: loaded as diffusers loads them, or refused with one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.diffusion.folders import component, load, weight_files
from studio.diffusion.layout import is_pipeline, part, tensors_of
from studio.diffusion.stepping import PipelineModel, finish, start, step
from studio.engine.memory.components import Components
from studio.engine.memory.ledger import Ledger
from studio.errors import WeightsError
from studio.weights.checksums import sha256_once
from studio.weights.loading import hosting

from . import tiny, whole

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
SD = "StableDiffusionPipeline"
QUICK = [SD, "FluxPipeline", "QwenImagePipeline"]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Stable Diffusion. Copy it before you change it."""
    return whole.save(SD, tmp_path_factory.mktemp("sd"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def stock(folder: Path, **options: Any) -> Any:
    """The pipeline as diffusers loads it, with its weights where torch would put them, not in the mapped file."""
    pipe = whole.diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        for parameter in module.parameters() if isinstance(module, torch.nn.Module) else ():
            parameter.data = parameter.data.clone()  # an unaligned address gives other last bits
    return pipe


def drawn(pipe: Any, name: str = SD, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return tiny.pixels(pipe(**whole.arguments(name), **more, generator=generator, output_type="np"))


def guest(model: PipelineModel, name: str = SD) -> np.ndarray:
    state = start(model, {**whole.arguments(name), "output_type": "np"}, studio.Rng(3))
    while not state.done:
        (state,) = step(model, [state])
    return tiny.pixels(finish(model, [state])[0])


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in whole.WHOLE]
)
def test_a_saved_pipeline_gives_the_bytes_of_diffusers(name: str, tmp_path: Path) -> None:
    whole.save(name, tmp_path)
    with tiny.one_thread():
        assert np.array_equal(guest(load(tmp_path, "cpu", "float32"), name), drawn(stock(tmp_path), name))


def state_of(pipe: Any) -> dict[str, Any]:
    return {
        f"{name}.{key}": tensor
        for name, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for key, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_each_tensor_has_the_dtype_that_diffusers_gives_it(dtype: str, tmp_path: Path) -> None:
    whole.save("WanPipeline", tmp_path)
    ours, theirs = (state_of(each) for each in (
        load(tmp_path, "cpu", dtype).pipe, stock(tmp_path, torch_dtype=getattr(torch, dtype))))  # fmt: skip
    assert {name: each.dtype for name, each in ours.items()} == {name: each.dtype for name, each in theirs.items()}
    assert {each.dtype for each in ours.values()} == {torch.float32, getattr(torch, dtype)}
    assert all(torch.equal(each, theirs[name]) for name, each in ours.items())


@pytest.mark.parametrize(("asked", "vae"), [(None, torch.float32), (True, torch.float32), (False, torch.float16)])
def test_a_vae_is_in_float32_where_its_config_says_so(folder: Path, asked: bool | None, vae: torch.dtype) -> None:
    config = folder / "vae" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**{key: each for key, each in values.items() if key != "force_upcast"},
                                  **({} if asked is None else {"force_upcast": asked})}))  # fmt: skip
    made = component(whole.diffusers.AutoencoderKL, folder / "vae", "cpu", torch.float16)
    assert made.dtype == vae
    assert made.decode(torch.zeros(1, 4, 8, 8, dtype=torch.float16)).sample.dtype == vae


def test_folders_with_only_a_variant_and_with_shards_give_the_same_weights(saved: Path, tmp_path: Path) -> None:
    whole.save(SD, tmp_path / "variant", variant="fp16")
    whole.save(SD, tmp_path / "shards", max_shard_size="100KB")
    whole.save(SD, tmp_path / "both", max_shard_size="100KB", variant="fp16")
    for kind, part_name in (
        (whole.diffusers.UNet2DConditionModel, "unet"),
        (whole.transformers.CLIPTextModel, "text_encoder"),
    ):
        plain = component(kind, saved / part_name, "cpu", torch.float32).state_dict()
        for name in ("variant", "shards", "both"):
            found = component(kind, tmp_path / name / part_name, "cpu", torch.float32).state_dict()
            assert found.keys() == plain.keys()
            assert all(torch.equal(each, plain[key]) for key, each in found.items())
    assert len(tensors_of(tmp_path / "both" / "unet")) > 2


def test_one_variant_is_chosen_and_an_unclear_choice_refused(tmp_path: Path) -> None:
    names = ["model", "model.fp16", "model.non_ema", "model.ema", "extra"]
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    for chosen in names[:2]:
        assert [file.stem for file in tensors_of(tmp_path)] == [chosen]
        (tmp_path / f"{chosen}.safetensors").unlink()
    with pytest.raises(WeightsError, match="has weights in the variants `ema`, `non_ema`"):
        tensors_of(tmp_path)


def test_tensors_of_older_versions_are_known_by_their_new_names(folder: Path) -> None:
    net, text_net = whole.diffusers.AutoencoderKL, whole.transformers.CLIPTextModel

    def states() -> list[dict[str, Any]]:
        loaded = [component(net, folder / "vae", "cpu", torch.float32),
                  component(text_net, folder / "text_encoder", "cpu", torch.float32)]  # fmt: skip
        return [each.state_dict() for each in loaded]

    plain = states()
    vae, text = (next((folder / name).glob("*.safetensors")) for name in ("vae", "text_encoder"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    for new, former in old.items():
        tensors = {
            name.replace(f"attentions.0.{new}", f"attentions.0.{former}"): each for name, each in tensors.items()
        }
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, vae, {"format": "pt"})
    tensors = {f"text_model.{name.removeprefix('text_model.')}": each for name, each in load_file(text).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(16)[None]}, text, {"format": "pt"})
    for one, two in zip(states(), plain, strict=True):
        assert all(torch.equal(each, two[name]) for name, each in one.items())


def test_tied_weights_are_one_tensor_unless_the_file_has_two_unlike_ones(tmp_path: Path) -> None:
    kind, file = whole.transformers.T5EncoderModel, tmp_path / "model.safetensors"
    whole.t5().save_pretrained(tmp_path)
    tensors, inner = load_file(file), "encoder.embed_tokens.weight"
    model = component(kind, tmp_path, "cpu", torch.float32)
    assert model.shared.weight is model.encoder.embed_tokens.weight
    save_file({**tensors, inner: tensors["shared.weight"] * 2}, file, {"format": "pt"})
    ours, theirs = (
        component(kind, tmp_path, "cpu", torch.float32),
        kind.from_pretrained(tmp_path, local_files_only=True),
    )
    assert torch.equal(ours.encoder.embed_tokens.weight, tensors["shared.weight"] * 2)
    assert torch.equal(theirs.encoder.embed_tokens.weight, ours.encoder.embed_tokens.weight)


def test_a_component_that_is_null_or_unlisted_is_none(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index["image_encoder"]
    index["safety_checker"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps({**index, "requires_safety_checker": False}))
    pipe = load(folder, "cpu", "float32").pipe
    assert pipe.safety_checker is pipe.image_encoder is None
    assert not pipe.config.requires_safety_checker


def test_a_model_with_one_network_may_have_its_files_beside_the_index(tmp_path: Path) -> None:
    net = whole.diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=8, layers_per_block=1,
    )  # fmt: skip
    net.save_pretrained(tmp_path)
    whole.diffusers.DDPMScheduler().save_pretrained(tmp_path)
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert part(tmp_path, "unet") == tmp_path
    assert torch.equal(load(tmp_path, "cpu", "float32").pipe.unet.conv_in.weight, net.conv_in.weight)


def test_modules_with_equal_files_are_shared_and_counted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    file = next((tmp_path / "other" / "unet").glob("*.safetensors"))
    save_file({name: each * 2 for name, each in load_file(file).items()}, file, {"format": "pt"})
    host = Components("cpu", Ledger(), sha256_once, None)
    models = []
    for i, place in enumerate((folder, tmp_path / "other")):
        with hosting(host, None), host.collecting() as used:
            models.append(load(place, "cpu", "float32").pipe)
            host.use(used, i)
    one, two = models
    assert one.text_encoder is two.text_encoder
    assert one.safety_checker is two.safety_checker
    assert one.unet is not two.unet
    parameters = {each for pipe in models for name in ("text_encoder", "unet", "vae", "safety_checker")
                  for each in getattr(pipe, name).parameters()}  # fmt: skip
    assert host.ledger.used >= sum(each.nbytes for each in parameters)


def test_the_weight_files_are_all_that_a_model_depends_on(folder: Path) -> None:
    names = {file.relative_to(folder).as_posix() for file in weight_files(folder)}
    assert names == {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").touch()  # not loaded
    (folder / "README.md").touch()
    assert {file.relative_to(folder).as_posix() for file in weight_files(folder)} == names


def change_index(folder: Path, **values: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **values}))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "scheduler",
            ["diffusers", "BestScheduler"],
            "a `diffusers.BestScheduler`, which the installed diffusers does",
        ),
        ("scheduler", ["diffusers", "DPMSolverSDEScheduler"], "needs the package `torchsde`"),
        ("unet", ["os", "system"], "a `os.system`, which"),
        ("unet", ["diffusers.utils", "load_image"], "which the installed diffusers does not have"),
        ("unet", ["loaders", "FromSingleFileMixin"], "which the installed diffusers does not have"),
        ("unet", ["transformers", "Trainer"], "which the installed diffusers does not have"),
        ("unet", ["__main__", "x"], "which the installed diffusers does not have"),
        ("_class_name", ["pipeline", "Mine"], "names no pipeline class"),
        ("_class_name", "MyPipeline", "a `MyPipeline`, a pipeline which the installed diffusers does not have"),
        ("_class_name", "UNet2DModel", "a `UNet2DModel`, a pipeline which the installed diffusers does not have"),
        ("_class_name", "FluxPipeline", "lists no `text_encoder_2`, which a `FluxPipeline` needs"),
        (
            "unet",
            ["diffusers", "AutoencoderKL"],
            "the config of a `UNet2DConditionModel`, but `model_index.json` names",
        ),
    ],
)
def test_a_class_that_is_not_a_component_is_refused_by_name(folder: Path, name: str, value: Any, reason: str) -> None:
    change_index(folder, **{name: value})
    with pytest.raises(WeightsError, match=reason):
        load(folder, "cpu", "float32")


def test_what_is_not_a_whole_model_is_refused_with_what_is_lacking(folder: Path) -> None:
    unet = next((folder / "unet").glob("*.safetensors"))
    content = unet.read_bytes()
    for damage, reason in [
        (content[:-8], "cannot be read as safetensors"),
        (b"x" * 64, "cannot be read as safetensors"),
    ]:
        unet.write_bytes(damage)
        with pytest.raises(WeightsError, match=reason):
            load(folder, "cpu", "float32")
    unet.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pickle \(`diffusion_pytorch_model.bin`\), which can run code"):
        load(folder, "cpu", "float32")
    shutil.rmtree(folder / "unet")
    with pytest.raises(WeightsError, match="the model's component `unet` is missing"):
        load(folder, "cpu", "float32")
    with pytest.raises(WeightsError, match="the model's component `unet` is missing"):
        weight_files(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    whole.save(SD, tmp_path, max_shard_size="100KB")
    gone = tensors_of(tmp_path / "unet")[1]
    gone.unlink()
    with pytest.raises(WeightsError, match=f"lacks the weight file `{gone.name}`"):
        load(tmp_path, "cpu", "float32")


@pytest.mark.parametrize(("part_name", "value"), [("unet", "nan"), ("text_encoder", "nan"), ("vae", "-inf")])
def test_weights_with_nan_are_refused(folder: Path, part_name: str, value: str) -> None:
    file = next((folder / part_name).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = float(value)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match="has NaN or infinity in float32"):
        load(folder, "cpu", "float32")


def test_weights_beyond_float16_are_refused_with_the_remedy(folder: Path) -> None:
    file = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["conv_in.weight"].view(-1)[0] = 1e5
    save_file(tensors, file, {"format": "pt"})
    kind = whole.diffusers.UNet2DConditionModel
    with pytest.raises(WeightsError, match=r"infinity in float16(.|\n)*float32 or bfloat16"):
        component(kind, folder / "unet", "cpu", torch.float16)
    component(kind, folder / "unet", "cpu", torch.bfloat16)


def test_folders_of_other_kinds_are_called_what_they_are(saved: Path, tmp_path: Path) -> None:
    for name, content, reason in [
        ("config.json", {"model_type": "llama"}, "it is a `llama` model of transformers"),
        ("open_clip_config.json", {}, "it is a model of open_clip"),
        ("adapter_config.json", {}, "it is an adapter of peft"),
    ]:
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(WeightsError, match=reason):
            weight_files(tmp_path)
    with pytest.raises(WeightsError, match="it is one component, a `AutoencoderKL`"):
        load(saved / "vae", "cpu", "float32")
    with pytest.raises(WeightsError, match="there is no such folder"):
        load(tmp_path / "none", "cpu", "float32")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), False),
        (("model_index.json",), True),
        (("a.safetensors",), True),
        (("a.gguf", "README.md"), True),
        (("a.safetensors", "b.safetensors"), False),
        (("a.safetensors", "config.json"), False),
    ],
)
def test_a_pipeline_is_a_folder_with_an_index_or_one_file(files: tuple[str, ...], found: bool, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert is_pipeline(tmp_path) is found
    for path in tmp_path.glob("a.*"):
        assert is_pipeline(path)
