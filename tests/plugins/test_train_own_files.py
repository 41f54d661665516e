"""`studio train` on one's own pictures and videos; what only trains a starter is refused with what to run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import studio
from studio.cli.main import run
from studio.devices import torch_setup

torch_setup.prepare()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "a blue box").mkdir(parents=True)
    for index in range(8):
        PIL.Image.new("RGB", (90 + index, 80), "red").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a red box of size {index}\n")
    PIL.Image.new("RGB", (80, 80), "blue").save(folder / "a blue box" / "1.png")
    return folder


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    (folder / "a red box").mkdir(parents=True)
    frames = np.full((8, 32, 48, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, index * 4 : index * 4 + 16] = (200, 40, 30)
    studio.Video(frames, 12).save(folder / "slide.mp4")
    (folder / "slide.txt").write_text("a red box sliding right")
    studio.Video(frames[::-1], 24).save(folder / "a red box" / "back.gif")
    return folder


def train(name: str, work: Path, *options: str) -> int:
    return run(["--device", "cpu", "train", name, "--work", str(work), "--steps", "1", *options])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        pytest.param("vae", [], marks=pytest.mark.slow),
        ("image", ["--batch", "1"]),
        ("image", ["--batch", "1", "--from-starter"]),
        ("clip", ["--batch", "8", "--lock", "both"]),
        ("clip", ["--batch", "8", "--lock", "none", "--tower", "vit"]),
    ],
)
def test_pictures_with_captions(
    name: str, more: list[str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(name, tmp_path, "--data", str(photos), *more) == 0, capfd.readouterr().err
    made = {"vae": "vae/model/config.json", "image": "image/starter/model_index.json", "clip": "clip/model/SHA256SUMS"}
    assert (tmp_path / made[name]).exists()
    if name == "clip":
        model = ["--model", str(tmp_path / "clip" / "model")]
        assert run(["rank", "a red box", str(photos / "1.png"), *model]) == 0, capfd.readouterr().err


def test_videos_with_captions(films: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train("video", tmp_path, "--data", str(films), "--frames", "4") == 0, capfd.readouterr().err
    said = " ".join(capfd.readouterr().err.split())
    assert "2 clips, 12 frames" in said  # 8 frames, and 8 of 24 a second at 12
    assert (tmp_path / "video" / "model" / "config.json").exists()
    (films / "slide.txt").unlink()
    assert train("video", tmp_path, "--data", str(films)) == 1
    assert "slide.mp4` has no caption" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["data", "text"])
def test_recipes_of_the_starters_are_refused_with_their_command(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", name, "--minutes", "26", "--from-starter"]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert f"`studio train {name}` only trains the starter model" in said
    assert f"run `python -m recipes.{name}`" in said
    assert run(["train", "--help"]) == 0
    assert f"\n  {name} " not in capfd.readouterr().out
    assert run(["plugins", "--json"]) == 0
    assert not any(name in each["trainers"] for each in json.loads(capfd.readouterr().out))


@pytest.mark.parametrize(
    ("name", "option"), [("gpt", "--begin"), ("video", "--things"), ("video", "--groups"), ("video", "--animated")]
)
def test_options_of_the_starters_are_refused_with_their_command(
    name: str, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", name, option, "3"]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert f"`{option}` only trains the starter model" in said
    assert f"run `python -m recipes.{name}`" in said


@pytest.mark.parametrize(
    ("name", "missing"),
    [("ddpm", "data"), ("dcgan", "data"), ("vae", "data"), ("image", "data"), ("clip", "data"), ("video", "data"),
     ("gpt", "texts"), ("gpt-chat", "chats")],
)  # fmt: skip
def test_without_data_it_says_what_to_give(
    name: str, missing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(name, tmp_path / "work") == 2
    said = " ".join(capfd.readouterr().err.split())
    assert f"`{missing}` is missing" in said
    assert f"give `--{missing} PATH`; for the starter's data, see `python -m recipes." in said
    assert not (tmp_path / "work").exists()
