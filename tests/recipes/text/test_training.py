"""The text tower's trainer at a small batch: finite losses, a checkpoint, and going on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from recipes.text import train as train_text
from recipes.text.train import Corpus

from ...plugins.studio_clip.test_training import check, logged

CPU = torch.device("cpu")


@pytest.fixture
def corpus(records: list[dict[str, Any]]) -> Corpus:
    """A random unit vector for each record and each of as many texts as a batch is drawn from."""
    texts = [f"thing {index}" for index in range(4100)]
    rng = torch.Generator().manual_seed(0)
    wanted = [F.normalize(torch.randn(len(rows), 384, generator=rng), dim=-1) for rows in (records, texts)]
    return Corpus(records, wanted[0], texts, wanted[1])


def test_text_tower_trains_and_goes_on(corpus: Corpus, tokens: Any, tmp_path: Path) -> None:
    def train(steps: int) -> Any:
        return train_text.train(corpus, tokens, tmp_path, device=CPU, steps=steps, minutes=9, batch=6)

    before = train(2).state_dict()
    check(tmp_path, 2)
    tower = train(3)
    check(tmp_path, 3)
    assert not torch.equal(tower.state_dict()["text_projection.weight"], before["text_projection.weight"])
    assert train_text.embed(tower, tokens, ["octopus", "a"]).shape == (2, 384)


@pytest.mark.slow
def test_text_tower_learns(corpus: Corpus, tokens: Any, tmp_path: Path) -> None:
    train_text.train(corpus, tokens, tmp_path, device=CPU, steps=100, minutes=9, batch=18)
    first, *_, last = logged(tmp_path, "loss")
    assert last < 0.9 * first
    assert (tmp_path / "curve.png").exists()
