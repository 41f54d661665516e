"""The words of one picture, and the split into training and test pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """The words for one picture.

    Attributes:
        id: unique and stable; it determines the split.
        source: `emoji` or `clipart`.
        group: the source's own category.
        label: the English name, in lower or mixed case as the source has it.
        tags: English words that go with it, possibly none.
        gloss: a WordNet definition of the label, or empty.
        synonyms: WordNet's other words for it.
        count: the frequency of the label in WordNet's tagged texts; 0 for a rare word or a phrase.
        zh_label, zh_tags: the same in Chinese, empty if the source has none.
        descriptions: English phrases that describe it without naming it (see descriptions.py).
        split: `train` or `test`; test pictures are never trained on by any starter.
    """

    id: str
    source: str
    group: str
    label: str
    tags: tuple[str, ...] = ()
    gloss: str = ""
    synonyms: tuple[str, ...] = ()
    count: int = 0
    zh_label: str = ""
    zh_tags: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    split: str = "train"


def held_out(record: Record, one_in: int) -> bool:
    """Whether the record is among the one in `one_in` that are held out for tests. The same on every machine."""
    return int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:4], "big") % one_in == 0
