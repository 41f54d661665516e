"""Fine-tuning data of the starter: short ideas, and the picture prompt for each.

A prompt is the name of a thing that the image model was trained on, and a description of its looks. Ideas are that
name, its synonyms, in English and Chinese, and descriptions that do not name it, with added phrases and dropped words.
One description in ten is `held_out` for evaluation and occurs in no idea and no prompt.

English descriptions come from the records. `chinese.jsonl` has Chinese ones of the most common things by their Chinese
names; it was written for Studio with the help of a language model, only from the names, and belongs to the project.

Try it: ``pytest tests/plugins/studio_gpt/test_ideas.py``
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

HELD_OUT = 10  # one description in ten is for evaluation
WORDINGS = 12  # the nearest WordNet texts that become ideas of a thing
LOOKS = frozenset((
    "red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "tan", "beige", "grey", "gray",
    "black", "white", "gold", "golden", "silver", "dark", "pale", "bright", "round", "square", "flat", "long", "tall",
    "short", "small", "tiny", "big", "large", "huge", "wooden", "metal", "glass", "striped", "spotted", "furry",
    "shiny", "curved", "pointed",
))  # fmt: skip
RIDDLES = frozenset(
    ("i", "my", "me", "we", "our", "you", "your", "who", "what", "it")
)  # words that picture prompts do not have
ARTICLES = ("a ", "an ", "the ", "any ", "two ", "some ")
NAMED = ("{}", "{}", "a {}", "the {}", "{} please", "draw a {}", "picture of a {}", "a cute {}", "one small {}")
TOLD = ("{}", "{}", "{}", "{}", "{}", "draw {}", "a picture of {}", "something like {}", "i want to see {}")
CHINESE = ("{}", "{}", "一个{}", "一只{}", "画一个{}", "{}的图片")
CHINESE_TOLD = ("{}", "{}", "画一个{}", "我想要{}", "{}，是什么")


def held_out(text: str) -> bool:
    """Whether a description is held out for evaluation: one in ten, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT == 0


def looks(record: dict[str, Any]) -> list[str]:
    """The record's descriptions of its looks, else the shortest two, without riddles and held-out ones."""
    kept = [text for text in record["descriptions"] if not held_out(text) and "?" not in text]
    plain = [text for text in kept if not RIDDLES & set(text.split())]
    seen = [text for text in plain if LOOKS & set(text.replace(",", " ").split())]
    return seen or sorted(plain, key=len)[:2]


def pairs(records: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of ideas and prompts of the training split; the same records give the same pairs.

    A record without descriptions has only ideas that name it, and its tags as its description.
    """
    made = []
    for record in records:
        if record["split"] != "train":
            continue
        rng = random.Random(record["id"])
        described = looks(record) or [", ".join(record["tags"][:3])]
        for place, idea in enumerate(_ideas(record, rng)):
            others = [text for text in described if text not in idea] or described
            prompt = ", ".join(filter(None, (record["label"], others[place % len(others)])))
            made.append((idea, prompt))
    return made


def held_out_pairs(records: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Held-out descriptions as ideas, and a prompt of the thing that each describes."""
    return [
        (text, f"{record['label']}, {looks(record)[0]}")
        for record in records if record["split"] == "train" and looks(record)
        for text in record["descriptions"] if held_out(text)
    ]  # fmt: skip


def held_out_chinese_pairs(records: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """The same for the Chinese descriptions."""
    return [
        (text, f"{record['label']}, {looks(record)[0]}")
        for record in records if record["split"] == "train" and looks(record)
        for text in chinese().get(record["zh_label"], ()) if held_out(text)
    ]  # fmt: skip


@cache
def chinese() -> dict[str, tuple[str, ...]]:
    """Chinese descriptions by the Chinese name of the thing."""
    rows = map(json.loads, Path(__file__).with_name("chinese.jsonl").read_text("utf-8").splitlines())
    return {row["zh_label"]: tuple(row["texts"]) for row in rows}


def _ideas(record: dict[str, Any], rng: random.Random) -> Iterator[str]:
    label, tags, zh = record["label"], record["tags"], record["zh_label"]
    yield from (label, label)
    for template in rng.sample(NAMED, 3):
        yield template.format(label)
    if zh:
        yield zh
        yield from (rng.choice(CHINESE).format(zh) for _ in range(2))
    kept = [text for text in record["descriptions"] if not held_out(text)]
    if not kept:
        return
    yield from (template.format(word) for word in record["synonyms"] for template in ("{}", rng.choice(NAMED)))
    if len(tags) > 1:
        yield from (" ".join(rng.sample(tags, 2)) for _ in range(2))
    if record["zh_tags"]:
        yield f"{zh}，{rng.choice(record['zh_tags'])}"
    for text in chinese().get(zh, ()):
        if not held_out(text):
            yield text
            yield rng.choice(CHINESE_TOLD).format(text)
            yield rng.choice(re.split("[，、]", text))
    if record["gloss"]:
        yield from {record["gloss"], record["gloss"].split(";")[0], _dropped(record["gloss"].split(";")[0], rng)}
    yield from record.get("wordings", ())[:WORDINGS]
    for text in kept:
        yield text
        yield _phrased(_dropped(text, rng), rng)
        yield f"{text}, {rng.choice(kept)}"


def _phrased(text: str, rng: random.Random) -> str:
    """Within a phrase of a request, with or without an article."""
    if text.startswith(ARTICLES):
        text = text.split(" ", 1)[1] if rng.random() < 0.3 else text
    elif rng.random() < 0.5:
        text = f"a {text}"
    return rng.choice(TOLD).format(text)


def _dropped(text: str, rng: random.Random) -> str:
    """Drop a fifth of its words, at least one, if it has more than three."""
    words = text.split()
    if len(words) <= 3:
        return text
    lost = set(rng.sample(range(len(words)), max(1, len(words) // 5)))
    return " ".join(word for place, word in enumerate(words) if place not in lost)


def chat(idea: str, prompt: str) -> str:
    """One line of a chat JSONL."""
    messages: Sequence[dict[str, str]] = [
        {"role": "user", "content": idea}, {"role": "assistant", "content": prompt},
    ]  # fmt: skip
    return json.dumps({"messages": messages}, ensure_ascii=False)
