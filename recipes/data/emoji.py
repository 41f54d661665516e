"""Fluent emoji with their labels and tags in English and Chinese, as records of pictures and words.

Reads the packages that `fetch.py` downloads: 256x256 RGBA WebP files named by code points, and emojibase's
`data.json` for each language. Only base forms are read, no skin-tone variants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from recipes.data.record import Record
from studio.media.pictures import square_on_white

GROUPS = ("smileys", "people", "component", "animals", "food", "travel", "activities", "objects", "symbols", "flags")
"""emojibase's ten groups, in its order."""

NOUN_GROUPS = ("animals", "food", "travel", "activities", "objects")
"""Groups whose labels name things: never held out, so that common nouns stay in training."""


def code(text: str) -> str:
    """Code points in lower case without the variation selector, which the two packages write differently."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def read(pictures: Path, words: Path, size: int) -> Iterator[tuple[Record, np.ndarray]]:
    """Yield a record and its picture for each base-form emoji that both packages contain.

    Args:
        pictures: unpacked `@lobehub/fluent-emoji-3d` (has `assets/*.webp`).
        words: unpacked `emojibase-data` (has `en/data.json`, `zh/data.json`).
        size: side of the output pictures, in pixels.

    Yields:
        (record, uint8 array of (size, size, 3) on white), in emojibase's order.
    """
    files = {code(path.stem): path for path in sorted((pictures / "assets").glob("*.webp"))}
    english = json.loads((words / "en" / "data.json").read_text("utf-8"))
    chinese = {entry["hexcode"]: entry for entry in json.loads((words / "zh" / "data.json").read_text("utf-8"))}
    for entry in english:
        path = files.get(code(entry["hexcode"]))
        if path is None or "group" not in entry:
            continue
        local = chinese.get(entry["hexcode"], {})
        record = Record(
            id=f"emoji-{code(entry['hexcode'])}",
            source="emoji",
            group=GROUPS[entry["group"]],
            label=entry["label"].replace("’", "'"),
            tags=tuple(tag.replace("’", "'") for tag in entry.get("tags", ()) if tag != entry["label"]),
            zh_label=local.get("label", ""),
            zh_tags=tuple(tag for tag in local.get("tags", ()) if tag != local.get("label")),
        )
        with PIL.Image.open(path) as picture:
            yield record, square_on_white(picture, size)
