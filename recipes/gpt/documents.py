"""The corpus of the text starter: names, descriptions, definitions, and ideas with their prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from recipes.data.wordnet import LEXNAMES, WordNet
from recipes.gpt.ideas import held_out, pairs


def documents(records: Sequence[dict[str, Any]], net: WordNet) -> list[str]:
    """The starter's corpus: names and descriptions of the records of the training split, WordNet's nouns with glosses,
    and ideas with their prompts, shuffled.

    Capitalised nouns (people, places, genera) are left out, as picture prompts rarely have them.
    """
    made = []
    for record in records:
        if record["split"] != "train":
            continue
        label = record["label"]
        made.append(f"{label}: {', '.join(record['tags'])}" if record["tags"] else label)
        if record["zh_label"]:
            zh, tags = record["zh_label"], "，".join(record["zh_tags"])
            made += [f"{zh}: {label}", f"{label}: {zh}", f"{zh}，{tags}: {label}", f"{tags}: {zh}, {label}"]
        made += [f"{label}, {text}" for text in record["descriptions"] if not held_out(text)]
        made += [f"{text}: {label}" for text in record["descriptions"] if not held_out(text)]
    for synset in net.synsets.values():
        if synset.lexname in LEXNAMES and synset.words[0].islower():
            made.append(f"{', '.join(synset.words)}: {synset.gloss}")
    made += [f"{one}\n{other}" for pair in pairs(records) for one, other in (pair, pair[::-1])]
    random.Random(0).shuffle(made)
    return made
