"""More captions of pictures: WordNet's nouns and definitions, assigned to the nearest record.

A record has one label and at most one definition, which is little variety for a model that is trained on prompts. The
corpus of the text tower has 140,000 texts with the teacher's embeddings; each becomes a caption of the nearest record,
if it is near enough ("a small short-legged smooth-coated breed of hound": dog).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from recipes.text.train import Corpus
from studio.files import write_atomically

NEAR = 0.6
"""Minimum cosine similarity of a text's target and a record's for the text to become its wording."""

MOST = 64
"""Maximum number of wordings per record: the nearest."""


@torch.inference_mode()
def assign(data: Corpus, near: float = NEAR, most: int = MOST) -> dict[str, list[str]]:
    """The wordings of each record of the corpus by its id, nearest first; records without any are left out."""
    found: dict[str, list[tuple[float, str]]] = {}
    for start in range(0, len(data.texts), 4096):
        cosine, row = (data.text_targets[start : start + 4096] @ data.record_targets.T).max(1)
        for text, value, index in zip(data.texts[start : start + 4096], cosine.tolist(), row.tolist(), strict=True):
            record = data.records[index]
            if value >= near and text.lower() != record["label"].lower():
                found.setdefault(record["id"], []).append((-value, text))
    return {id: [text for _, text in sorted(texts)[:most]] for id, texts in found.items()}


def save(path: Path, wordings: dict[str, list[str]]) -> None:
    """Save the output of `assign`."""
    write_atomically(path, json.dumps(wordings, ensure_ascii=False).encode())


def load(path: Path) -> dict[str, list[str]]:
    """Load wordings from the file of `save`."""
    wordings: dict[str, list[str]] = json.loads(path.read_text("utf-8"))
    return wordings


def join(records: list[dict[str, Any]], wordings: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The records, each with its `wordings`."""
    return [record | {"wordings": wordings.get(record["id"], [])} for record in records]
