"""Training captions of a record's picture, in English and Chinese.

`phrases` gives a record's distinct names; `caption` puts one at random in the form of a prompt.
"""

from __future__ import annotations

import random
from typing import Any

ENGLISH = ("{}", "{}", "{}", "a {}", "the {}", "a picture of a {}", "an emoji of a {}", "an icon of a {}", "one {}",
           "a drawing of a {}", "a small {}", "a 3d {}", "{} on a white background")  # fmt: skip
CHINESE = ("{}", "{}", "{}", "一个{}", "一只{}", "{}的图片", "一张{}的图片", "{}图标", "画一个{}")


def phrases(record: dict[str, Any]) -> dict[str, list[str]]:
    """Texts for the record's picture by kind: `label`, `synonym`, `tagged` (label, tag), `tags` (no label), `gloss`,
    `description` (see recipes/data/descriptions.py), `wording` (see wordings.py), `zh`, `zh_tagged`.
    """
    label, zh = record["label"], record["zh_label"]
    gloss = record["gloss"]
    return {
        "label": [label],
        "synonym": list(record["synonyms"]),
        "tagged": [f"{label}, {tag}" for tag in record["tags"]] + [f"{tag} {label}" for tag in record["tags"]],
        "tags": list(record["tags"]) if len(record["tags"]) > 1 else [],
        "gloss": [gloss, gloss.split(";")[0], gloss.split(",")[0]] if gloss else [],
        "description": list(record["descriptions"]),
        "wording": list(record.get("wordings", ())),
        "zh": [zh] if zh else [],
        "zh_tagged": [f"{zh}，{tag}" for tag in record["zh_tags"]] if zh else [],
    }


WEIGHTS = {"label": 8, "synonym": 2, "tagged": 3, "tags": 2, "gloss": 3, "description": 12, "wording": 4, "zh": 4,
           "zh_tagged": 2}  # fmt: skip


def caption(record: dict[str, Any], rng: random.Random) -> str:
    """A random caption of the record: its kind is drawn by `WEIGHTS`, and names are put in a template."""
    kinds = {kind: names for kind, names in phrases(record).items() if names}
    kind = rng.choices(list(kinds), [WEIGHTS[kind] for kind in kinds])[0]
    name = rng.choice(kinds[kind])
    if kind in ("label", "synonym"):
        return rng.choice(ENGLISH).format(name)
    if kind == "zh":
        return rng.choice(CHINESE).format(name)
    if kind == "tags":
        return ", ".join(rng.sample(kinds[kind], min(len(kinds[kind]), rng.randint(2, 4))))
    if kind in ("gloss", "wording") and rng.random() < 0.5:
        return f"a {name}" if not name.startswith(("a ", "an ", "the ", "any ")) else name
    return name
