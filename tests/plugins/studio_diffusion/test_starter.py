"""The starter as it ships: the same bytes in any process, told apart by its CLIP, whole in the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import studio
from studio_diffusion.image import STARTER

ROOT = Path(__file__).parents[3]
MIB = 1 << 20


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[studio.Studio]:
    with studio.Studio(home=tmp_path_factory.mktemp("home"), device="cpu") as host:
        yield host


@pytest.mark.slow
def test_same_bytes_in_another_process(host: studio.Studio, tmp_path: Path) -> None:
    here = host.image("一个红苹果", seed=3, steps=4)
    command = [sys.executable, "-m", "studio", "--home", str(tmp_path), "--device", "cpu", "--quiet"]
    command += ["image", "一个红苹果", "--seed", "3", "--steps", "4", "--json"]
    (there,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert there["sha256"] == here.sha256
    assert Path(there["stored"]).read_bytes() == here.file_bytes()


def test_batched_with_others_is_within_one_level(host: studio.Studio) -> None:
    prompts = ["a red apple", "an octopus", "一只猫"]
    alone = [host.image(prompt, seed=i, steps=4 + i, guidance=2 + i) for i, prompt in enumerate(prompts)]
    tickets = [
        host.submit("image", seed=i, prompt=prompt, steps=4 + i, guidance=2 + i) for i, prompt in enumerate(prompts)
    ]
    for ticket, one in zip(tickets, alone, strict=True):
        made = ticket.result()
        assert isinstance(made, studio.Image)
        assert np.abs(np.asarray(made.pil).astype(int) - np.asarray(one.pil)).max() <= 1


def test_clip_tells_the_pictures_apart(host: studio.Studio) -> None:
    """Among ten things of unlike looks, CLIP names most of the starter's pictures rightly; chance is one."""
    from studio_clip.model import load

    things = [
        "a red apple",
        "a horse",
        "a house",
        "a tree",
        "a fish",
        "a star",
        "a bicycle",
        "a rose",
        "a clock",
        "a car",
    ]
    tickets = [host.submit("image", seed=i, prompt=thing, steps=6) for i, thing in enumerate(things)]
    pictures = np.stack([np.asarray(ticket.result().pil) for ticket in tickets])
    clip = load()
    named = (clip.encode_pixels(pictures) @ clip.encode_text(things).T).argmax(1)
    assert (named == np.arange(len(things))).sum() >= 5


def test_weights_keep_to_their_sizes() -> None:
    files = list((ROOT / "plugins").glob("*/weights/**/*.safetensors"))
    assert files
    assert all(file.stat().st_size <= 30 * MIB for file in files)
    assert sum(file.stat().st_size for file in files) <= 96 * MIB


def test_chinese_and_english_are_one_thing_to_the_text_tower() -> None:
    """The Chinese label's nearest English label, among common ones, is its own."""
    from studio_clip.model import load

    rows = json.loads((ROOT / "benchmarks" / "recognition_prompts.json").read_text("utf-8"))
    clip = load()
    english, chinese = clip.encode_text([row["label"] for row in rows]), clip.encode_text([row["zh"] for row in rows])
    nearest = (chinese @ english.T).argmax(1)
    assert (nearest == np.arange(len(rows))).sum() >= 0.9 * len(rows)


@pytest.mark.slow
def test_the_wheel_carries_the_starter(tmp_path: Path) -> None:
    """Built from a copy of what git tracks, the wheel has every weight, tokenizer file, checksum and notice."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(tmp_path / "clone")]
    subprocess.run(pip, check=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [file.relative_to(STARTER).as_posix() for file in STARTER.rglob("*") if file.is_file()]
    wanted = {f"studio_diffusion/weights/starter/{file}" for file in files}
    assert wanted <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert {"studio/py.typed", "studio/methods.pyi"} <= names
