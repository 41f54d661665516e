"""The descriptions that ship: well formed, naming nothing, and none close to what the model is measured by."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from recipes.data import descriptions

PROMPTS = Path(__file__).parents[3] / "benchmarks" / "recognition_prompts.json"
SMALL = {"a", "an", "the", "of", "in", "on", "for", "to", "with", "that", "and", "you", "it", "is", "at", "by", "your",
         "its", "who", "from", "when"}  # fmt: skip


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall("[a-z]+", text.lower())) - SMALL


def test_they_are_short_lower_case_phrases_each_once_a_picture() -> None:
    told = descriptions.read()
    assert len(told) > 800
    for id, texts in told.items():
        assert re.fullmatch("emoji-[0-9a-f-]+", id)
        assert 6 <= len(texts) <= 18
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert 1 < len(text.split()) <= 16, text
            assert text == text.strip().rstrip(".")
            assert text.isprintable()


def test_they_are_not_written_from_a_template() -> None:
    texts = [text for texts in descriptions.read().values() for text in texts]
    starts = Counter(" ".join(text.split()[:3]) for text in texts)
    assert starts.most_common(1)[0][1] < len(texts) / 50


def test_no_test_prompt_is_among_them_or_nearly_so() -> None:
    asked = [words(row["paraphrase"]) for row in json.loads(PROMPTS.read_text("utf-8"))]
    for texts in descriptions.read().values():
        for text in texts:
            own = words(text)
            for prompt in asked:
                assert len(own & prompt) < 0.5 * len(own | prompt), text
