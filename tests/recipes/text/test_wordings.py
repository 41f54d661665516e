"""A text is a wording of the one record it lies nearest to, if it lies near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from recipes.text import wordings
from recipes.text.train import Corpus

from .conftest import record


@given(seed=st.integers(0, 1000), near=st.floats(-0.5, 0.9), most=st.integers(1, 5))
def test_each_text_goes_to_its_nearest_record(seed: int, near: float, most: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    targets, vectors = (F.normalize(torch.randn(count, 3, generator=rng), dim=-1) for count in (6, 40))
    records = [record(f"picture {index}") for index in range(6)]
    texts = [f"text {index}" for index in range(40)]
    cosine = [[float(text @ target) for target in targets] for text in vectors]
    wanted: dict[str, list[str]] = {}
    for row in sorted(range(40), key=lambda row: -max(cosine[row])):
        best = max(range(6), key=cosine[row].__getitem__)
        if cosine[row][best] >= near and len(wanted.setdefault(records[best]["id"], [])) < most:
            wanted[records[best]["id"]].append(texts[row])
    found = wordings.assign(Corpus(records, targets, texts, vectors), near, most)
    assert found == {id: texts for id, texts in wanted.items() if texts}


def test_a_label_is_not_its_own_wording() -> None:
    one = torch.eye(2)
    data = Corpus([record("Cat"), record("dog")], one, ["cat", "feline", "dog"], one[[0, 0, 1]])
    assert wordings.assign(data) == {"Cat": ["feline"]}


def test_kept_and_joined(records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "wordings.json"
    wordings.save(path, {"octopus": ["a soft swimmer", "海里的"]})
    joined = wordings.join(records, wordings.load(path))
    assert joined[0] == records[0] | {"wordings": ["a soft swimmer", "海里的"]}
    assert [one["wordings"] for one in joined[1:]] == [[]] * (len(records) - 1)
    with pytest.raises(FileNotFoundError, match="wordings"):
        wordings.load(tmp_path / "other" / "wordings.json")
