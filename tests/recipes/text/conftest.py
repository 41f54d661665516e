"""A tokenizer learnt from a few words, a tiny text tower that fits it, and the words of a few pictures."""

from __future__ import annotations

from typing import Any

import pytest

from ...plugins.studio_clip.conftest import WORDS, tokenizer_folder, tokens, tower

__all__ = ["WORDS", "record", "records", "tokenizer_folder", "tokens", "tower"]


def record(label: str, **more: Any) -> dict[str, Any]:
    """A record as `recipes.data.build.load` gives it."""
    empty = {"tags": [], "gloss": "", "synonyms": [], "zh_label": "", "zh_tags": [], "count": 0,
             "descriptions": []}  # fmt: skip
    return {"id": label, "source": "emoji", "group": "food", "split": "train", **empty, "label": label, **more}


@pytest.fixture
def records() -> list[dict[str, Any]]:
    names = ["apple", "pear", "cat", "dog", "red car", "blue car", "house", "tree"]
    return [
        record("octopus", tags=["sea", "arms"], gloss="mollusk with eight arms; lives in the sea, alone",
               synonyms=["devilfish"], zh_label="章鱼", zh_tags=["海", "动物"]),
        *(record(name) for name in names),
    ]  # fmt: skip
