"""Which pictures the starters see more often."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.data.shares import share


def record(group: str = "food", **more: Any) -> dict[str, Any]:
    empty = {"tags": [], "gloss": "", "synonyms": [], "zh_label": "", "zh_tags": [], "count": 0}
    return {"source": "emoji", "group": group, "label": "red apple", **empty, **more}


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (record(count=3, gloss="x"), record(gloss="x")),
        (record(gloss="x"), record()),
        (record(), record("smileys")),
        (record("smileys"), record("flags")),
        (record("symbols"), record("food", source="clipart")),
    ],
)
def test_common_things_are_seen_more_often(more: dict[str, Any], less: dict[str, Any]) -> None:
    assert share(more) > share(less)
    assert share(less) > 0
