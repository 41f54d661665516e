"""What a stranger's config may not do: run code, reach the network, name other folders, or grow without bound."""

from __future__ import annotations

import json
import math
import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from studio import loaders
from studio.devices import torch_setup
from studio.errors import ModelError, WeightsError
from studio.loaders import CODE, allowed, check_index, offline, read_config, transformers
from studio.loaders import diffusers as of_diffusers
from studio.loaders import open_clip as of_open_clip

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("key", CODE)
def test_a_config_that_asks_for_code_is_refused(tmp_path: Path, key: str) -> None:
    path = written(tmp_path / "config.json", {"a": [{"b": {key: "evil.Evil"}}]})
    with pytest.raises(WeightsError, match=f"requests remote code \\(`{key}`\\)"):
        read_config(path)
    assert read_config(written(path, {key: False})) == {key: False}


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\x00", '"a"', '{"a":' + "9" * 5000 + "}"])
def test_what_is_not_a_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(WeightsError, match="JSON"):
        read_config(written(tmp_path / "config.json", text))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(WeightsError, match="it is a pipe, not a file"):
        read_config(tmp_path / "config.json")
    with pytest.raises(WeightsError, match="more than 3 bytes"):
        read_config(written(tmp_path / "big.json", {"a": 1}), 3)


@pytest.mark.parametrize(
    "value", [{"num_hidden_layers": 10**9}, {"image_size": 1 << 20}, {"width": 1 << 40}, {"list": [0] * 5000}]
)
def test_numbers_that_no_model_has_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"at most|too long"):
        allowed(Path("config.json"), value, value)


def test_minus_infinity_is_a_value_that_diffusers_writes() -> None:
    values = {"lambda_min_clipped": -math.inf}
    assert allowed(Path("config.json"), values, values) == values
    with pytest.raises(WeightsError, match="at most"):
        allowed(Path("config.json"), {"width": math.inf}, ["width"])


def test_nothing_is_fetched_while_a_model_loads(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with pytest.raises(ModelError, match="tried to access the network"), offline(tmp_path):
            socket.create_connection(address)
        with pytest.raises(ModelError, match=r"example\.invalid"), offline(tmp_path), suppress(OSError):
            socket.getaddrinfo("example.invalid", 443)  # caught, as by libraries that fall back to what they have
        socket.create_connection(address).close()  # outside of it as ever


@pytest.mark.parametrize(
    "change",
    [
        {"text_cfg": {**TEXT, "hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}},
        {"text_cfg": {**TEXT, "tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}},
        {"text_cfg": {**TEXT, "tokenizer_kwargs": {"cache_dir": "/tmp"}}},
        {"text_cfg": {**TEXT, "hf_model_name": "owner/name"}},
        {"text_cfg": {**TEXT, "auto_map": {"AutoModel": "evil.Evil"}}},
        {"vision_cfg": {**VISION, "timm_model_name": "hf-hub:owner/name"}},
        {"vision_cfg": {**VISION, "timm_model_name": "hf_hub:owner/name"}},
        {"vision_cfg": {**VISION, "timm_model_name": "local-dir:/tmp/x"}},
        {"vision_cfg": {**VISION, "timm_model_name": "no_such_network"}},
        {"vision_cfg": {**VISION, "timm_model_name": ["resnet18"]}},
        {"vision_cfg": {**VISION, "layers": 10**9}},
        {"vision_cfg": {**VISION, "image_size": 10**9}},
        {"vision_cfg": {**VISION, "image_size": 4096, "timm_model_name": "resnet18"}},
        {"vision_cfg": {**VISION, "image_size": [16, 4096]}},
        {"vision_cfg": {**VISION, "image_size": "16"}},
        {"text_cfg": {**TEXT, "context_length": 10**9}},
        {"pretrained": "https://example.invalid/x.pt"},
        {"_target_": "os.system"},
    ],
)
def test_what_an_open_clip_config_may_not_ask_for(tmp_path: Path, change: dict[str, Any]) -> None:
    torch_setup.prepare()
    model = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT, **change}
    written(tmp_path / of_open_clip.CONFIG, {"model_cfg": model, "preprocess_cfg": {}})
    with pytest.raises(WeightsError):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "tower"),
    [
        ({"context_length": 65536}, None),  # a mask of its square
        ({"hf_model_name": "x"}, {"model_type": "m2m_100", "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 8,
                                  "d_model": 1024, "max_position_embeddings": 1 << 22}),
    ],
)  # fmt: skip
def test_what_a_clip_computes_of_its_config_is_bounded(tmp_path: Path, text: dict[str, Any], tower: Any) -> None:
    """A config of a kilobyte may otherwise ask for 16 GiB beside the weights."""
    torch_setup.prepare()
    if tower:
        written(tmp_path / "config.json", tower)
    model = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {**TEXT, **text}}
    written(tmp_path / of_open_clip.CONFIG, {"model_cfg": model, "preprocess_cfg": {}})
    build = of_open_clip.build(of_open_clip.configuration(tmp_path)["model_cfg"], tmp_path)
    with pytest.raises(WeightsError, match="at most 1,073,741,824"):
        build()


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("WanTransformer3DModel", {"num_layers": 1, "rope_max_seq_len": 1 << 24}, "at most 1,073,741,824"),
        ("CogVideoXTransformer3DModel", {"num_layers": 1, "sample_width": 8192, "sample_height": 8192,
                                         "sample_frames": 4097}, "at most 1,073,741,824"),
        ("WanTransformer3DModel", {"num_layers": 1024}, "more than 5,000 parameter tensors"),
        ("UNet2DModel", {"layers_per_block": 1024}, "more than 5,000 parameter tensors"),
    ],
)  # fmt: skip
def test_what_a_module_computes_of_its_config_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, values: dict[str, Any], reason: str
) -> None:
    torch_setup.prepare()
    monkeypatch.setattr(loaders, "MOST_PARTS", 5_000)
    written(tmp_path / "config.json", values)
    with pytest.raises(WeightsError, match=reason):
        of_diffusers.module(kind, tmp_path)


def opened(folder: Path) -> Any:
    config = of_open_clip.configuration(folder)["model_cfg"]
    return of_open_clip.build(config, folder)(), of_open_clip.tokenizer(config["text_cfg"], folder)


def evil(folder: Path) -> Path:
    """Python beside a config that would write a file if it were imported; that file's path."""
    mark = folder / "ran"
    written(folder / "evil.py", f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    return mark


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "tokenizer.json", "special_tokens_map.json"])
def test_a_tokenizer_runs_none_of_its_folders_code(tmp_path: Path, name: str) -> None:
    torch_setup.prepare()
    mark = evil(tmp_path)
    written(tmp_path / "vocab.json", {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2})
    written(tmp_path / "merges.txt", "#version: 0.2\n")
    written(tmp_path / name, {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"})
    if name == "config.json":  # of a tokenizer it is not looked at
        assert transformers.tokenizer("CLIPTokenizer", tmp_path)("a").input_ids == [1, 0, 2]
    else:
        with pytest.raises(WeightsError, match="requests remote code"):
            transformers.tokenizer("CLIPTokenizer", tmp_path)
    assert not mark.exists()


def test_a_tokenizers_settings_name_no_other_file(tmp_path: Path) -> None:
    torch_setup.prepare()
    written(tmp_path / "m" / "vocab.json", {"a</w>": 0, "b</w>": 3, "<|startoftext|>": 1, "<|endoftext|>": 2})
    written(tmp_path / "m" / "merges.txt", "#version: 0.2\n")
    other = written(tmp_path / "secret.json", {"secret</w>": 0})
    written(tmp_path / "m" / "tokenizer_config.json", {
        "vocab_file": str(other), "tokenizer_file": str(other), "init_inputs": [str(other)], "name_or_path": "owner/x",
        "fast_tokenizer_files": [str(other)], "model_max_length": 10**30, "add_prefix_space": False,
    })  # fmt: skip
    made = transformers.tokenizer("CLIPTokenizer", tmp_path / "m")
    assert made("b").input_ids == [1, 3, 2]
    assert "secret</w>" not in made.get_vocab()


def test_a_config_has_only_what_its_class_declares(tmp_path: Path) -> None:
    torch_setup.prepare()
    written(tmp_path / "config.json", {
        "model_type": "clip_text_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "_name_or_path": "owner/name", "attn_implementation": "owner/kernel", "_attn_implementation": "owner/kernel",
        "quantization_config": {"quant_method": "awq"}, "secret": 1,
    })  # fmt: skip
    made = transformers.config("CLIPTextConfig", tmp_path)
    assert made.hidden_size == 32
    assert not hasattr(made, "secret")
    assert made._name_or_path == ""
    assert not getattr(made, "_attn_implementation", None)
    assert not hasattr(made, "quantization_config")
    written(tmp_path / "config.json", {"hidden_size": "wide"})
    with pytest.raises(WeightsError, match="transformers cannot load"):
        transformers.config("CLIPTextConfig", tmp_path)


def test_weights_stay_in_their_folder(tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors.index.json", {"weight_map": {"w": "../other/model.safetensors"}})
    with pytest.raises(WeightsError, match="outside its folder"):
        check_index(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    written(tmp_path / "adapter_config.json", {"base_model_name_or_path": "owner/name"})
    with pytest.raises(WeightsError, match="is an adapter"):
        check_index(tmp_path)


def test_a_diffusers_module_has_only_what_its_class_declares(tmp_path: Path) -> None:
    torch_setup.prepare()
    written(
        tmp_path / "config.json", {"_class_name": "Evil", "block_out_channels": [32], "auto": 1, "norm_num_groups": 32}
    )
    assert "auto" not in of_diffusers.config("AutoencoderKL", tmp_path / "config.json")
    assert type(of_diffusers.module("AutoencoderKL", tmp_path)).__name__ == "AutoencoderKL"
    written(tmp_path / "config.json", {"layers_per_block": 10**6})
    with pytest.raises(WeightsError, match="at most 1,024"):
        of_diffusers.module("AutoencoderKL", tmp_path)
    written(tmp_path / "config.json", {"down_block_types": ["os.system"]})
    with pytest.raises(WeightsError, match="diffusers cannot load"):
        of_diffusers.module("AutoencoderKL", tmp_path)


def test_what_a_kill_leaves_of_a_loading_tokenizer_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, signal, studio.loaders as l\nwith l.scratch() as f: print(f, flush=True); os.kill(os.getpid(), 9)"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.parent == tmp_path
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    with loaders.scratch() as other:
        assert list(tmp_path.iterdir()) == [other]
    assert not list(tmp_path.iterdir())
