"""The split is the same everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from recipes.data.record import Record, held_out


def record(name: str) -> Record:
    return Record(id=name, source="emoji", group="food", label="apple")


def test_the_split_never_changes() -> None:
    """Weights that were trained on one split must not be tested on another."""
    assert [i for i in range(40) if held_out(record(f"emoji-{i}"), 5)] == [7, 8, 10, 19, 29, 35]


def test_the_split_is_of_the_id_alone() -> None:
    for i in range(50):
        one = record(f"emoji-{i}")
        assert held_out(one, 5) == held_out(replace(one, label="pear", source="clipart", split="test"), 5)


@pytest.mark.parametrize("one_in", [2, 5, 12])
def test_the_share_is_near(one_in: int) -> None:
    count, n = sum(held_out(record(f"clipart-food/{i}"), one_in) for i in range(6000)), 6000
    assert abs(count - n / one_in) < 4 * math.sqrt(n / one_in)
