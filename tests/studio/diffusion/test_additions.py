"""LoRA, textual inversion, other VAEs and ControlNets: what diffusers gives with them, or refused with one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.diffusion.additions import Additions
from studio.diffusion.folders import load, weight_files
from studio.engine.memory.components import Components
from studio.engine.memory.ledger import Ledger
from studio.errors import WeightsError
from studio.loaders.adapters import changes_text_encoder
from studio.spec import Addition
from studio.weights import streaming
from studio.weights.checksums import sha256_once
from studio.weights.loading import Streaming, hosting

from . import original, tiny, whole
from .test_folders import drawn, stock

pytest.importorskip("peft")
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]
SD = "StableDiffusionPipeline"
Names = dict[str, torch.Tensor]


def lora(name: str, seed: int, *, text: bool = False, alpha: int = 4) -> tuple[Any, dict[str, Names]]:
    """A pipeline with a random LoRA of rank 4, and its tensors by component."""
    pipe, found = copy.copy(whole.made(name)), {}
    for part, targets in (
        ("unet", ["to_q", "to_v"]),
        ("transformer", ["to_q", "to_v"]),
        ("text_encoder", ["q_proj", "k_proj", "v_proj", "out_proj"]),
    ):
        if getattr(pipe, part, None) is None or (part == "text_encoder" and not text):
            continue
        module = copy.deepcopy(getattr(pipe, part))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=targets, init_lora_weights=False))
        found[part] = get_peft_model_state_dict(module)
        setattr(pipe, part, module)
    return pipe, found


def save_lora(folder: Path, name: str, seed: int, *, text: bool = False) -> Path:
    """A LoRA as diffusers saves it."""
    _, found = lora(name, seed, text=text)
    type(whole.made(name)).save_lora_weights(folder, **{f"{part}_lora_layers": each for part, each in found.items()})
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole.save(SD, tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    "name", [SD, *(pytest.param(each, marks=pytest.mark.slow) for each in whole.WHOLE if each != SD)]
)
def test_loras_with_weights_give_the_bytes_of_diffusers(name: str, tmp_path: Path) -> None:
    folder = whole.save(name, tmp_path / "base")
    files = [
        save_lora(tmp_path / "one", name, 1, text=name in (SD, "FluxPipeline")),
        save_lora(tmp_path / "two", name, 2),
    ]
    with tiny.one_thread():
        model = load(folder, "cpu", "float32", Additions(loras=((files[0], 0.7), (files[1].parent, -0.4))))
        theirs = whole.diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        for i, file in enumerate(files):
            theirs.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True, adapter_name="ab"[i])
        theirs.set_adapters(["a", "b"], [0.7, -0.4])
        for module in theirs.components.values():
            for parameter in module.parameters() if isinstance(module, torch.nn.Module) else ():
                parameter.data = parameter.data.clone()
        ours = drawn(model.pipe, name)
        assert np.array_equal(ours, drawn(theirs, name))
        assert not np.array_equal(ours, drawn(load(folder, "cpu", "float32").pipe, name))


def test_a_component_with_a_lora_is_whole_where_the_others_are_streamed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SMALL", 1)
    more = Additions(loras=((save_lora(tmp_path, SD, 1), 0.7),))
    with tiny.one_thread():
        expected = drawn(load(saved, "cpu", "float32", more).pipe)
        with hosting(None, Streaming(0)):
            streamed = load(saved, "cpu", "float32", more).pipe
        assert np.array_equal(drawn(streamed), expected)
    parts = {"unet": streamed.unet, "vae": streamed.vae, "text_encoder": streamed.text_encoder}
    assert {name for name, each in parts.items() if _on_meta(each)} == {"vae"}


def _on_meta(module: torch.nn.Module) -> list[torch.Tensor]:
    return [each for each in module.parameters() if each.is_meta]


def test_the_weights_of_the_base_stay_as_they_are(saved: Path, tmp_path: Path) -> None:
    file = save_lora(tmp_path, SD, 1, text=True)
    pipe = load(saved, "cpu", "float32", Additions(loras=((file, 1.0),))).pipe
    for part in ("unet", "text_encoder"):
        plain = {}
        for path in (saved / part).glob("*.safetensors"):
            plain |= {name.removeprefix("text_model."): each for name, each in load_file(path).items()}
        found = {name.replace(".base_layer.", "."): each for name, each in getattr(pipe, part).named_parameters()
                 if ".lora_" not in name}  # fmt: skip
        assert all(torch.equal(each, plain[name.removeprefix("text_model.")]) for name, each in found.items())
        assert len(found) == len(plain)


def kohya(found: dict[str, Names], alpha: float) -> Names:
    """A LoRA under the names of kohya's scripts, each layer with its scale."""
    made = {}
    for part, tensors in found.items():
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
        for name, tensor in tensors.items():
            layer, _, factor = name.removesuffix(".weight").removeprefix("text_model.").rpartition(".")
            flat = prefix + layer.replace(".", "_")
            made[f"{flat}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[factor] }.weight".replace(" ", "")] = tensor
            made[f"{flat}.alpha"] = torch.tensor(alpha)
    return made


def test_the_names_of_kohya_and_of_peft_are_known(saved: Path, tmp_path: Path) -> None:
    pipe, found = lora(SD, 1, text=True, alpha=2)
    save_file(kohya(found, 2.0), tmp_path / "kohya.safetensors")
    with tiny.one_thread():
        made = load(saved, "cpu", "float32", Additions(loras=((tmp_path / "kohya.safetensors", 1.0),))).pipe
        np.testing.assert_allclose(drawn(made), drawn(pipe), atol=1e-5)
    pipe, found = lora(SD, 1, alpha=2)
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file({f"base_model.model.{name}": each for name, each in found["unet"].items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2, "peft_type": "LORA"}))
    with tiny.one_thread():
        made = load(saved, "cpu", "float32", Additions(loras=((folder, 1.0),))).pipe
        np.testing.assert_allclose(drawn(made), drawn(pipe), atol=1e-5)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2, "use_dora": True}))
    with pytest.raises(WeightsError, match="settings other than `r` and `lora_alpha`"):
        load(saved, "cpu", "float32", Additions(loras=((folder, 1.0),)))


def test_a_scale_in_the_header_is_used_and_nothing_else_of_it(saved: Path, tmp_path: Path) -> None:
    pipe, found = lora(SD, 1, alpha=2)
    tensors = {f"unet.{name}": each for name, each in found["unet"].items()}
    header = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": ["to_q", "to_v"],
              "unet.layer_replication": [[0, 2]], "unet.init_lora_weights": "loftq"}  # fmt: skip
    save_file(tensors, tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(header), "format": "pt"})
    with tiny.one_thread():
        made = load(saved, "cpu", "float32", Additions(loras=((tmp_path / "l.safetensors", 1.0),))).pipe
        np.testing.assert_allclose(drawn(made), drawn(pipe), atol=1e-5)
    save_file(tensors, tmp_path / "l.safetensors", {"lora_adapter_metadata": "[", "format": "pt"})
    with pytest.raises(WeightsError, match=r"the header of .* is damaged"):
        load(saved, "cpu", "float32", Additions(loras=((tmp_path / "l.safetensors", 1.0),)))


def test_a_lora_that_does_not_fit_is_refused_with_what_was_found(saved: Path, tmp_path: Path) -> None:
    _, found = lora(SD, 1)
    tensors = {f"unet.{name}": each for name, each in found["unet"].items()}
    some = next(iter(tensors)).removesuffix(".lora_A.weight")
    for changed, reason in [
        (
            {name: each.repeat(1, 2) if ".lora_A." in name else each for name, each in tensors.items()},
            r"its `\S+lora_A` has the shape \[4, \d+\], the model.s has \[4, \d+\]",
        ),
        (
            tensors
            | {"unet.other.to_q.lora_A.weight": torch.zeros(4, 4), "unet.other.to_q.lora_B.weight": torch.zeros(4, 4)},
            r"1 of its \d+ layers are unknown, such as `unet\.other\.to_q`",
        ),
        (
            {name.replace("unet.", "transformer."): each for name, each in tensors.items()},
            "layers are unknown, such as",
        ),
        ({some: torch.zeros(2)}, "does not fit this"),
        ({"conv_in.weight": torch.zeros(2)}, "does not fit this"),
        ({name.replace("lora_A", "hada_w1_a"): each for name, each in tensors.items()}, "does not fit this"),
    ]:
        save_file({name: each.contiguous() for name, each in changed.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(WeightsError, match=reason):
            load(saved, "cpu", "float32", Additions(loras=((tmp_path / "bad.safetensors", 1.0),)))


def test_files_that_are_no_adapters_are_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "a.pt").write_bytes(b"no")
    for name, reason in [("a.safetensors", "cannot be read as safetensors"), ("a.pt", "a pickle, which can run code"),
                         ("none.safetensors", "cannot be read")]:  # fmt: skip
        for added in (Additions(loras=((tmp_path / name, 1.0),)), Additions(embeddings=(tmp_path / name,))):
            with pytest.raises(WeightsError, match=reason):
                load(saved, "cpu", "float32", added)
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(WeightsError, match="has 2 safetensors files; a LoRA is one"):
        weight_files(saved, Additions(loras=((tmp_path, 1.0),)))


def test_a_model_with_a_lora_shares_only_what_the_lora_does_not_change(saved: Path, tmp_path: Path) -> None:
    file = save_lora(tmp_path, SD, 1)
    host, models = Components("cpu", Ledger(), sha256_once, None), []
    for i, weight in enumerate((None, 1.0, 1.0, 0.5)):
        with hosting(host, None), host.collecting() as used:
            added = Additions(loras=((file, weight),) if weight else ())
            models.append(load(saved, "cpu", "float32", added).pipe)
            host.use(used, i)
    plain, one, again, half = models
    assert len({id(pipe.unet) for pipe in models}) == 3
    assert one.unet is again.unet
    assert one.unet is not half.unet
    assert len({id(pipe.vae) for pipe in models}) == 1
    assert not any("lora" in name for name, _ in plain.unet.named_parameters())
    with tiny.one_thread():
        assert np.array_equal(drawn(one), drawn(again))
    modules = {
        id(each): each for pipe in models for each in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.safety_checker)
    }
    assert host.ledger.used >= sum(each.nbytes for module in modules.values() for each in module.parameters())


def test_a_textual_inversion_is_a_word(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "zebra style.safetensors"
    save_file({"emb_params": torch.full((2, 32), 0.3)}, file)
    pipe = load(saved, "cpu", "float32", Additions(embeddings=(file,))).pipe
    theirs = stock(saved)
    theirs.load_textual_inversion(torch.full((2, 32), 0.3), token="zebra-style")
    with tiny.one_thread():
        for prompt in ("a zebra-style", "a boat"):
            assert np.array_equal(*(
                tiny.pixels(each(**whole.arguments(SD) | {"prompt": prompt}, generator=torch.Generator().manual_seed(1),
                                 output_type="np")) for each in (pipe, theirs)))  # fmt: skip
    save_file({"emb_params": torch.full((2, 48), 0.3)}, file)
    with pytest.raises(WeightsError, match="has vectors of 48 values; this model has 32"):
        load(saved, "cpu", "float32", Additions(embeddings=(file,)))
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 32)}, file)
    with pytest.raises(WeightsError, match=r"has `clip_g`, `clip_l`; .* needs one embedding"):
        load(saved, "cpu", "float32", Additions(embeddings=(file,)))


def test_another_vae_takes_the_place_of_the_models(saved: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        other = whole.kl(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "vae")
    for place in (tmp_path / "vae", tmp_path):
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        pipe = load(saved, "cpu", "float32", Additions(vae=place)).pipe
        assert torch.equal(pipe.vae.encoder.conv_in.weight, other.encoder.conv_in.weight)
        assert pipe.vae.config.scaling_factor == 0.5
    files = weight_files(saved, Additions(vae=tmp_path))
    assert tmp_path / "vae" / "config.json" in files
    assert not any(file.parent == saved / "vae" for file in files)
    for vae, reason in [
        (whole.kl(latent_channels=8), "'latent_channels': 8"),
        (whole.diffusers.AutoencoderTiny(encoder_block_out_channels=(8,), decoder_block_out_channels=(8,),
         num_encoder_blocks=(1,), num_decoder_blocks=(1,)), "is a `AutoencoderTiny`"),
    ]:  # fmt: skip
        vae.save_pretrained(tmp_path / "unfit")
        with pytest.raises(WeightsError, match=reason):
            load(saved, "cpu", "float32", Additions(vae=tmp_path / "unfit"))
    with pytest.raises(WeightsError, match="is not a VAE in diffusers' layout"):
        load(saved, "cpu", "float32", Additions(vae=tmp_path / "nothing"))


def test_a_controlnet_joins_the_model_that_it_was_trained_for(saved: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 8,
        "conditioning_embedding_out_channels": (16, 32),
    }  # fmt: skip
    whole.diffusers.ControlNetModel(**options, cross_attention_dim=32).save_pretrained(tmp_path / "control")
    pipe = load(saved, "cpu", "float32", Additions(controlnets=(tmp_path / "control",))).pipe
    assert type(pipe).__name__ == "StableDiffusionControlNetPipeline"
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = whole.diffusers.StableDiffusionControlNetPipeline(**stock(saved).components, controlnet=pipe.controlnet)
    with tiny.one_thread():
        assert np.array_equal(drawn(pipe, image=picture), drawn(theirs, image=picture))
    whole.diffusers.ControlNetModel(**options, cross_attention_dim=48).save_pretrained(tmp_path / "control")
    with pytest.raises(WeightsError, match="does not fit: its `cross_attention_dim` is 48, the model's is 32"):
        load(saved, "cpu", "float32", Additions(controlnets=(tmp_path / "control",)))
    whole.unet().save_pretrained(tmp_path / "control")
    with pytest.raises(
        WeightsError, match="is a `UNet2DConditionModel`, which a `StableDiffusionPipeline` does not take"
    ):
        load(saved, "cpu", "float32", Additions(controlnets=(tmp_path / "control",)))
    with pytest.raises(WeightsError, match="is not a ControlNet"):
        load(saved, "cpu", "float32", Additions(controlnets=(tmp_path / "none",)))


def test_several_controlnets_add_up(saved: Path, tmp_path: Path) -> None:
    nets = []
    for i in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            nets.append(
                whole.diffusers.ControlNetModel.from_unet(
                    whole.made(SD).unet, conditioning_embedding_out_channels=(8, 16)
                )
            )
            for parameter in nets[i].parameters():
                parameter.data = torch.randn_like(parameter) * 0.1
        nets[i].save_pretrained(tmp_path / str(i))
    pipe = load(saved, "cpu", "float32", Additions(controlnets=(tmp_path / "0", tmp_path / "1"))).pipe
    theirs = whole.diffusers.StableDiffusionControlNetPipeline(**stock(saved).components, controlnet=nets)
    theirs.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(0)
    given = {
        "image": [torch.rand(1, 3, 32, 32, generator=draw) for _ in nets],
        "controlnet_conditioning_scale": [0.5, 0.9],
    }
    with tiny.one_thread():
        assert np.array_equal(drawn(pipe, **given), drawn(theirs, **given))
    theirs.save_pretrained(tmp_path / "whole")
    files = weight_files(saved, Additions(controlnets=(tmp_path / "0", tmp_path / "1")))
    assert {tmp_path / "0", tmp_path / "1"} < {file.parent for file in files}
    heavy = studio.ModelRef(source="m", additions=(Addition(kind="controlnet", source="n", weight=0.5),))
    with pytest.raises(WeightsError, match=r"the ControlNet `n` has the weight 0.5, which only LoRA have"):
        Additions.of(heavy)


def test_a_file_has_the_weights_of_another_vae(saved: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        other = whole.kl()
    file, state = tmp_path / "vae.safetensors", other.state_dict()
    for tensors in (state, {f"first_stage_model.{name}": each for name, each in original.vae(state).items()}):
        save_file(tensors, file)
        pipe = load(saved, "cpu", "float32", Additions(vae=file)).pipe
        assert all(torch.equal(each, state[name]) for name, each in pipe.vae.state_dict().items())
    files = weight_files(saved, Additions(vae=file))
    assert file in files
    assert saved / "vae" / "config.json" in files
    assert not [each for each in files if each.parent == saved / "vae" and each.suffix == ".safetensors"]
    for tensors in (whole.kl(latent_channels=8).state_dict(), {"a": torch.zeros(1)}):
        save_file(tensors, file)
        with pytest.raises(WeightsError, match="has no whole VAE of this model's form, a `AutoencoderKL`"):
            load(saved, "cpu", "float32", Additions(vae=file))


def test_a_controlnet_of_another_family_is_refused(tmp_path: Path) -> None:
    """`ControlNetModel` is a part of the name of FLUX's own class."""
    whole.diffusers.ControlNetModel.from_unet(whole.made(SD).unet).save_pretrained(tmp_path / "net")
    folder = whole.save("FluxPipeline", tmp_path / "flux")
    with pytest.raises(WeightsError, match="is a `ControlNetModel`, which a `FluxPipeline` does not take"):
        load(folder, "cpu", "float32", Additions(controlnets=(tmp_path / "net",)))


@pytest.mark.parametrize(
    ("name", "text"),
    [("unet.mid_block.lora_A.weight", False), ("transformer.blocks.0.lora_A.weight", False),
     ("lora_unet_mid.alpha", False), ("base_model.model.mid.lora_A.weight", False),
     ("text_encoder_2.layers.0.lora_B.weight", True),
     ("lora_te_text_model_encoder.alpha", True), ("lora_te2_text_model_encoder.alpha", True)],
)  # fmt: skip
def test_whether_a_lora_changes_the_text_encoder_is_read_from_its_names(tmp_path: Path, name: str, text: bool) -> None:
    save_file({"unet.up.lora_A.weight": torch.zeros(1), name: torch.zeros(1)}, tmp_path / "a.safetensors")
    assert changes_text_encoder(tmp_path / "a.safetensors") is text
    assert changes_text_encoder(tmp_path) is text
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        changes_text_encoder(tmp_path)
