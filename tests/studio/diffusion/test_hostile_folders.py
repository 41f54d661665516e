"""Folders that name what is not in them, or ask for what no model has: refused, with the file that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import studio
from studio.diffusion.folders import load, weight_files
from studio.errors import ModelError, WeightsError

from . import whole

SD = "StableDiffusionPipeline"
PREPROCESSOR = "feature_extractor/preprocessor_config.json"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return whole.save(SD, tmp_path / "model")


@pytest.mark.parametrize("name", ["../other/vae", "/etc/passwd", "a/b", "", "..", "vae\0"])
def test_components_are_folders_of_the_model(folder: Path, name: str) -> None:
    change(folder / "model_index.json", **{name: ["diffusers", "AutoencoderKL"]})
    for use in (lambda: weight_files(folder), lambda: load(folder, "cpu", "float32")):
        with pytest.raises(WeightsError, match="which is not the name of a component"):
            use()


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("unet/config.json", {"block_out_channels": [1 << 24, 1 << 24]}, "values; at most 4,294,967,296 are allowed"),
        ("unet/config.json", {"block_out_channels": [-32, 64]}, "negative dimension"),
        ("scheduler/scheduler_config.json", {"beta_start": 5, "beta_end": -3}, "diffusers cannot load"),
        (PREPROCESSOR, {"crop_size": {"height": 10**6, "width": 10**6}}, "at most 8,192"),
        (PREPROCESSOR, {"size": {"shortest_edge": 10**6}}, "at most 8,192"),
        ("unet/config.json", {"in_channels": "four"}, "`in_channels` in .* is 'four': a text in place of numbers"),
        ("unet/config.json", {"act_fn": 5}, "`act_fn` in .* is 5: numbers in place of a text"),
        ("vae/config.json", {"scaling_factor": "big"}, "`scaling_factor` in .* is 'big': a text in place of numbers"),
        ("vae/config.json", {"block_out_channels": ["a", 64]}, "a text in place of numbers"),
        ("vae/config.json", {"latent_channels": {"a": 1}}, "an object in place of numbers"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "`scaling_factor` in .* is not a number"),
        ("scheduler/scheduler_config.json", {"steps_offset": "one"}, "a text in place of numbers"),
        ("model_index.json", {"requires_safety_checker": "maybe"}, "a text in place of numbers"),
    ],
)  # fmt: skip
def test_a_config_asks_for_no_more_than_a_model_has(
    folder: Path, file: str, values: dict[str, Any], reason: str
) -> None:
    change(folder / file, **values)
    with pytest.raises(WeightsError, match=reason):
        load(folder, "cpu", "float32")


def test_components_that_do_not_fit_together(folder: Path, tmp_path: Path) -> None:
    change(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"])
    whole.clip_text(projection=True, hidden=64).save_pretrained(folder / "text_encoder")
    hint = "its parts or these inputs may not fit together"
    with studio.Studio(home=tmp_path / "home") as host, pytest.raises(ModelError, match="failed: ") as caught:
        host.submit("image", prompt="a boat", model=str(folder), steps=1, size="64x64", seed=1).result(300)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer", "scheduler", "text_encoder"])
def test_a_component_that_the_pipeline_needs_and_is_null(folder: Path, name: str, tmp_path: Path) -> None:
    change(folder / "model_index.json", **{name: [None, None]})
    with studio.Studio(home=tmp_path / "home") as host, pytest.raises(ModelError, match=f"`{SD}` failed: Attribute"):
        host.submit("image", prompt="a boat", model=str(folder), steps=1, size="64x64", seed=1).result(300)


@pytest.mark.slow
def test_files_are_listed_before_torchvision_is_set_up(folder: Path) -> None:
    program = (
        "import sys, pathlib, studio.diffusion.folders as f; print(len(f.weight_files(pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
