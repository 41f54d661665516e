"""`studio image`, `video` and `audio` with a pipeline's folder and a seed give what diffusers gives for that seed.

One class of each family of docs/pipelines.md, but for those of `UNWORDED`.
"""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import studio
from benchmarks.pipelines import command_line
from studio.cli.main import run
from studio.diffusion.arguments import guidance_argument
from tests import forkserver

from . import tiny, whole
from .conformance import arrays
from .tiny.words import COMPARED, UNWORDED, worded

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries: many of these classes are old
QUICK = {"StableDiffusionXLPipeline", "ZImagePipeline", "LTXPipeline", "StableAudioPipeline"}
SEED, SIDE, STEPS = 7, 64, 2


def options_and_arguments(pipe: Any, given: dict[str, Any], folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The same request for the command and for the pipeline's call."""
    takes = inspect.signature(type(pipe).__call__).parameters
    options, call = ["--steps", str(STEPS)], {"num_inference_steps": STEPS}
    if "height" in takes and given.get("height"):
        options += ["--size", f"{SIDE}x{SIDE}"]
        call |= {"height": SIDE, "width": SIDE}
    if name := guidance_argument(pipe):
        options += ["--guidance", "4"]
        call[name] = 4.0
    for name in ("num_frames", "video_length", "frames"):
        if name in given:
            options += ["--frames", str(given[name])]
            call[name] = given[name]
    picture_option = "--control" if hasattr(pipe, "controlnet") else "--image"
    for name, option in (("image", picture_option), ("mask_image", "--mask")):
        if name in given:
            picture = given[name].resize((SIDE, SIDE))
            if name == "mask_image":  # all of it: Studio keeps the pixels where it is black
                picture = Image.new("L", picture.size, 255)
            picture.save(folder / f"{name}.png")
            options += [option, str(folder / f"{name}.png")]
            call[name] = picture
    if "prompt" in takes:
        call["prompt"] = "a red boat"
    return options, call


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, name, marks=() if name in QUICK else pytest.mark.slow)
        for command, names in COMPARED.items()
        for name in names
    ],
)
def test_a_seed_gives_the_pixels_of_diffusers(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, given = worded(name)
    pipe.save_pretrained(tmp_path / "model")
    if hasattr(pipe, "vqgan"):  # as in the published folders; `save_pretrained` names a module that has moved
        index = tmp_path / "model" / "model_index.json"
        index.write_text(
            index.read_text().replace('"diffusers",\n    "PaellaVQModel"', '"wuerstchen",\n    "PaellaVQModel"')
        )
    options, call = options_and_arguments(pipe, given, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    file = {"image": "out.png", "video": "clip.png", "audio": "out.wav"}[command]
    asked = [command, "a red boat", "--model", str(tmp_path / "model"), "--seed", str(SEED), *options, "-o", file]
    with tiny.one_thread():
        assert run(asked) == 0
        pipe.set_progress_bar_config(disable=True)
        stock = pipe(**call, generator=torch.Generator("cpu").manual_seed(SEED), output_type="np")
    assert difference(tmp_path / file, stock) <= 2


def difference(file: Path, stock: Any) -> float:
    """The largest difference of a file from the output of the pipeline's call, in levels of 255."""
    expected = arrays(stock)[0].astype(np.float64)
    if file.suffix == ".wav":
        made = studio.Audio.open(file).samples()
        return float(np.abs(made - np.clip(np.atleast_2d(expected[0]), -1, 1)).max()) * 127.5
    with Image.open(file) as opened:  # a clip is an animated PNG, which loses nothing
        made = np.stack([np.asarray(frame.convert("RGB"), np.float64) for frame in ImageSequence.Iterator(opened)])
    made = np.squeeze(made)
    found = np.squeeze(expected)
    assert made.shape == found.shape, (made.shape, found.shape)
    return float(np.abs(made - found * 255).max())


def test_the_document_says_what_is_compared() -> None:
    assert command_line() in (Path(__file__).parents[3] / "docs" / "pipelines.md").read_text("utf-8")


def test_each_family_of_the_table_is_compared_or_has_a_reason() -> None:
    compared = {tiny.FAMILIES[name] for names in COMPARED.values() for name in names}
    assert compared | UNWORDED.keys() == set(tiny.FAMILIES.values())
    assert not compared & UNWORDED.keys()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved Stable Diffusion, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return whole.save("StableDiffusionPipeline", tmp_path / "model")


ASKED = ["image", "a red boat", "--model", "model", "--size", "64x64", "--seed", "3"]


def test_several_at_once_have_seeds_and_previews_of_their_own(folder: Path, tmp_path: Path) -> None:
    more = ["--steps", "4", "-n", "3", "-o", "out/", "--previews", "seen", "--preview-every", "2"]
    assert run([*ASKED, *more]) == 0
    pictures = sorted((tmp_path / "out").iterdir())
    assert [each.name.split("-")[1] for each in pictures] == ["3", "4", "5"]
    previews = [each.name.split("-")[1:3] for each in sorted((tmp_path / "seen").iterdir())]
    assert previews == [["step0002", seed] for seed in "345"] + [["step0004", seed] for seed in "345"]
    assert len({each.read_bytes() for each in (tmp_path / "seen").iterdir()}) == 6
    assert run([*ASKED, "--steps", "4", "--seed", "4", "-o", "alone.png"]) == 0
    alone, together = (studio.Image.open(each).samples().astype(int) for each in (tmp_path / "alone.png", pictures[1]))
    assert np.abs(alone - together).max() <= 1


def test_an_interrupt_ends_the_command(folder: Path, tmp_path: Path) -> None:
    reads, writes = os.pipe()
    process = forkserver.start(["-m", "studio", *ASKED, "--steps", "900", "-o", "out.png"], cwd=tmp_path, stderr=writes)
    os.close(writes)
    with open(reads, encoding="utf-8") as told:
        said = told.readline()
        while "step" not in said:
            assert process.poll() is None, said
            said += told.readline()
        os.kill(process.pid, signal.SIGINT)
        assert "error: interrupted" in told.read()
    assert process.wait() == 130
    assert not (tmp_path / "out.png").exists()
