"""One picture's words, and how pictures of every source are brought to one form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import PIL.Image

from studio.media import pictures


@dataclass(frozen=True)
class Record:
    """What is known in words of one picture.

    Attributes:
        id: unique and stable; the split follows from it.
        source: `emoji` or `clipart`.
        group: the source's own category.
        label: the English name, in lower or mixed case as the source has it.
        tags: English words that go with it, possibly none.
        gloss: a WordNet definition of the label, or empty.
        synonyms: WordNet's other words for it.
        count: how often the label stands in WordNet's tagged texts; 0 for a rare word or a phrase.
        zh_label, zh_tags: the same in Chinese, empty where the source has none.
        descriptions: English phrases that tell of it without naming it (see descriptions.py).
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
    """Whether the record's id falls in the one-in-`one_in` part that is kept for tests. The same on every machine."""
    return int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:4], "big") % one_in == 0


def on_white(picture: PIL.Image.Image, size: int) -> np.ndarray:
    """The picture centred on a white square, longest side fitted, as a uint8 array of (size, size, 3)."""
    rgb = pictures.on_white(picture)
    side = max(rgb.size)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
    return np.asarray(square.resize((size, size), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0))
