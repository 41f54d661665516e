"""Every caption says its own picture's words, dressed as a prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.text.captions import CHINESE, ENGLISH, WEIGHTS, caption, phrases

from .conftest import record

WORD = st.text("abcde{}%", min_size=1, max_size=6)
HAN = st.text("红苹果章鱼", min_size=1, max_size=4)
RECORDS = st.builds(
    record,
    WORD,
    tags=st.lists(WORD, max_size=3),
    synonyms=st.lists(WORD, max_size=2),
    gloss=st.just("") | st.lists(WORD, min_size=2, max_size=5).map("; ".join) | st.lists(WORD).map(" ".join),
    zh_label=st.just("") | HAN,
    zh_tags=st.lists(HAN, max_size=2),
    wordings=st.lists(WORD, max_size=3),
    descriptions=st.lists(WORD, max_size=3),
)


@given(one=RECORDS, seed=st.integers(0, 1000))
def test_a_caption_is_one_of_its_phrases_in_a_template(one: dict[str, Any], seed: int) -> None:
    made = caption(one, random.Random(seed))
    own = phrases(one)
    if 2 <= len(made.split(", ")) <= 4 and set(made.split(", ")) <= set(own["tags"]):
        return
    possible = {made for kind in ("tagged", "gloss", "description", "wording", "zh_tagged") for made in own[kind]}
    possible |= {template.format(name) for name in own["label"] + own["synonym"] for template in ENGLISH}
    possible |= {template.format(name) for name in own["zh"] for template in CHINESE}
    possible |= {f"a {name}" for name in own["gloss"] + own["wording"]}
    assert made in possible
    assert made.strip()


@given(one=RECORDS)
def test_phrases_come_from_the_record(one: dict[str, Any]) -> None:
    own = phrases(one)
    assert own.keys() == WEIGHTS.keys()
    assert all(one["label"] in phrase for phrase in own["label"] + own["tagged"])
    assert all(phrase in one["synonyms"] for phrase in own["synonym"])
    assert own["tags"] in ([], one["tags"])
    assert own["wording"] == one["wordings"]
    assert own["description"] == one["descriptions"]
    assert all(one["gloss"].startswith(phrase) and phrase for phrase in own["gloss"])
    assert all(one["zh_label"] and one["zh_label"] in phrase for phrase in own["zh"] + own["zh_tagged"])


def test_every_kind_is_said_about_as_often_as_weighted(records: list[dict[str, Any]]) -> None:
    rng = random.Random(0)
    octopus = records[0] | {"wordings": ["a soft swimmer"], "descriptions": ["it hides in ink"]}
    made = [caption(octopus, rng) for _ in range(2400)]
    total = sum(WEIGHTS.values())
    for weight, words in (
        (WEIGHTS["synonym"], ["devilfish"]),
        (WEIGHTS["gloss"], ["mollusk"]),
        (WEIGHTS["wording"], ["swimmer"]),
        (WEIGHTS["description"], ["ink"]),
        (WEIGHTS["zh"] + WEIGHTS["zh_tagged"], ["章鱼"]),
        (WEIGHTS["label"] + WEIGHTS["tagged"], ["octopus"]),
    ):
        share = sum(any(word in text for word in words) for text in made) / len(made)
        assert share == pytest.approx(weight / total, abs=0.05)
    assert sum(text in ("sea, arms", "arms, sea") for text in made) / len(made) == pytest.approx(
        WEIGHTS["tags"] / total, abs=0.05
    )
    assert made != [caption(octopus, rng) for _ in range(2400)]
    assert made[:9] == [caption(octopus, again) for again in [random.Random(0)] for _ in range(9)]


@pytest.mark.parametrize("seed", range(20))
def test_a_record_with_a_label_alone_says_it(seed: int) -> None:
    assert "cup" in caption(record("cup"), random.Random(seed))
