"""Which emoji the video starter learns."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.video.trainer import TrainVideo, chosen
from studio.errors import InputError


def record(label: str, group: str, count: int, split: str = "train", source: str = "emoji") -> dict[str, Any]:
    return {"label": label, "group": group, "count": count, "split": split, "source": source}


RECORDS = [
    record("yak", "animals", 1), record("dog", "animals", 9), record("red apple", "food", 0), record("egg", "food", 5),
    record("house", "travel", 20), record("cat", "animals", 7, split="test"),
    record("dog", "animals", 9, source="clipart"),
]  # fmt: skip


def labels(**options: Any) -> list[str]:
    return [RECORDS[i]["label"] for i in chosen(RECORDS, TrainVideo.Options.parse(options))]


def test_all_emoji_of_the_groups_are_learnt_in_the_order_of_the_data_set() -> None:
    assert labels() == ["yak", "dog", "red apple", "egg"]
    assert labels(groups="travel") == ["house"]


def test_the_commonest_and_those_named_besides() -> None:
    assert labels(things=2) == ["dog", "egg"]
    assert labels(things=2, also=" red apple, house,dog") == ["dog", "egg", "red apple", "house"]
    assert labels(groups="", also="house") == ["house"]


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"groups": "animal"}, "`groups` has `animal`", "did you mean `animals`"),
        ({"also": "red aple"}, "`also` has `red aple`", "did you mean `red apple`"),
        ({"also": "cat"}, "`also` has `cat`, which is not in", "it has dog"),
        ({"groups": " ,"}, "`groups` and `also` are empty", "give a group"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        labels(**options)
    assert hint in (refused.value.hint or "")
