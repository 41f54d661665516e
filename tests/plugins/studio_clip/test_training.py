"""Contrastive training at a small batch: finite losses, a checkpoint, and going on from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from studio_clip import train_pairs

CPU = torch.device("cpu")


def check(folder: Path, steps: int) -> None:
    """The checkpoint is of that many steps, each of which the optimizer took, and everything in it is finite."""
    with safetensors.safe_open(folder / "run.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["counters"])["step"] == steps
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
    taken = {
        float(value) for name, value in tensors.items() if name.startswith("optimizer.") and name.endswith(".step")
    }
    assert taken == {float(steps)}


def logged(folder: Path, column: str) -> list[float]:
    with (folder / "log.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("which", "image"), [("text", "vit"), ("none", "vit"), ("both", "efficientnet")])
def test_clip_trains_and_goes_on(
    which: str, image: str, captions: list[str], tokens: Any, tower: Any, tmp_path: Path
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (len(captions), 64, 64, 3), np.uint8)

    def train(steps: int) -> Any:
        model = train_pairs.build(tower, image)
        train_pairs.lock(model, which)
        return train_pairs.train(
            pictures, captions, model, tokens, tmp_path, device=CPU, steps=steps, minutes=9, batch=6, chunk=4
        )

    before = {name: value.clone() for name, value in train(2).state_dict().items()}
    check(tmp_path, 2)
    model = train(3)
    check(tmp_path, 3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    lockable = train_pairs.build(tower, image)
    train_pairs.lock(lockable, which)
    learnt = {name for name, parameter in lockable.named_parameters() if parameter.requires_grad}
    assert changed <= learnt, "what is locked, and statistics of batches, stay"
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in learnt}


@pytest.mark.slow
def test_image_tower_learns(captions: list[str], tokens: Any, tower: Any, tmp_path: Path) -> None:
    """Eight colours, eight names."""
    pictures = np.empty((len(captions), 64, 64, 3), np.uint8)
    pictures[:] = np.random.default_rng(0).integers(0, 256, (len(captions), 1, 1, 3))
    model = train_pairs.build(tower)
    train_pairs.lock(model, "text")
    train_pairs.train(pictures, captions, model, tokens, tmp_path, device=CPU, steps=100, minutes=9, batch=8)
    first, *_, last = logged(tmp_path, "loss")
    assert last < 0.9 * first
