"""The best weights of a run: kept, known to the run that goes on, and put back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from studio.errors import WeightsError
from studio.training.best import Best


def test_the_best_is_kept_and_put_back(tmp_path: Path) -> None:
    module, path = torch.nn.Linear(2, 2), tmp_path / "best.safetensors"
    best = Best(path)
    assert best.score == -math.inf
    taken = []
    for score in (0.25, 0.75, 0.5, 0.75, math.nan):
        torch.nn.init.normal_(module.weight)
        taken.append(best.offer(module, score))
        if taken[-1]:
            kept = module.weight.detach().clone()
    assert taken == [True, True, False, False, False]
    again = Best(path)
    assert again.score == 0.75
    assert not again.offer(module, 0.75)
    again.restore(module)
    assert torch.equal(module.weight, kept)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[1].weight = module[0].weight
    best = Best(tmp_path / "best.safetensors")
    best.offer(module, 1.0)
    kept = module[0].weight.detach().clone()
    torch.nn.init.zeros_(module[0].weight)
    best.restore(module)
    assert module[1].weight is module[0].weight
    assert torch.equal(module[0].weight, kept)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"best\.safetensors` is not a file of best weights"):
        Best(tmp_path / "best.safetensors")
