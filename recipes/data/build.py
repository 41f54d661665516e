"""Build the starters' data set: pictures as one array, words as JSON lines.

A data set is a folder with `pictures.npy` (uint8, (N, size, size, 3), memory-mappable) and `records.jsonl` (row i
describes picture i; fields of `Record`). `emoji/LABEL/ID.png` are the emoji of animals and foods among them, for
`studio train ddpm` and `dcgan`. The same packages give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data import clipart, descriptions, emoji, fetch
from recipes.data.record import Record, held_out
from recipes.data.wordnet import LEXNAMES, Synset, WordNet
from studio.errors import StudioError
from studio.files import make_folder, new_file, write_atomically
from studio.media import Image

_NUMBER = {name: number for number, name in LEXNAMES.items()}
_PREFER = {
    "animals": ("animal", "plant", "phenomenon", "object"), "food": ("food", "plant", "artifact"),
    "travel": ("artifact", "object", "phenomenon"), "activities": ("artifact", "object"),
    "objects": ("artifact", "body", "food", "object"),
}  # fmt: skip
"""Which meaning of an emoji's label is meant, by its group: a `bat` among the animals is one."""


LABELLED = ("animals", "food")
"""The groups of emoji that most people recognise at 32 pixels."""


def wordnet(cache: Path) -> WordNet:
    """WordNet 3.0, downloaded if necessary."""
    return WordNet(fetch.fetch(fetch.WORDNET, cache) / "usr" / "share" / "wordnet")


def _define(record: Record, synset: Synset | None, net: WordNet) -> Record:
    if synset is None:
        return record
    synonyms = tuple(word for word in synset.words if word.lower() != record.label.lower())
    return dataclasses.replace(record, gloss=synset.gloss, synonyms=synonyms, count=net.counts[record.label.lower()])


def _emoji(cache: Path, net: WordNet, size: int) -> Iterator[tuple[Record, np.ndarray]]:
    pictures, words = (fetch.fetch(package, cache) / "package" for package in (fetch.EMOJI, fetch.WORDS))
    described = descriptions.read()
    for record, pixels in emoji.read(pictures, words, size):
        if record.group in emoji.NOUN_GROUPS:
            prefer = tuple(_NUMBER[name] for name in _PREFER[record.group])
            record = _define(record, net.drawable(record.label, prefer), net)
            record = dataclasses.replace(record, descriptions=described.get(record.id, ()))
        elif held_out(record, 12):
            record = dataclasses.replace(record, split="test")
        yield record, pixels


def _clipart(cache: Path, net: WordNet, size: int) -> Iterator[tuple[Record, np.ndarray]]:
    pictures, vectors = (
        fetch.fetch(package, cache) / "usr" / "share" / "openclipart"
        for package in (fetch.CLIPART, fetch.CLIPART_WORDS)
    )
    for record, pixels in clipart.read(pictures / "png", vectors / "svg", size):
        if net.drawable(record.label) is None and net.drawable(record.label.split()[-1]) is None:
            continue  # a title that names nothing: an author, a place, a file number
        record = _define(record, net.drawable(record.label), net)
        yield (dataclasses.replace(record, split="test") if held_out(record, 5) else record), pixels


def build(folder: Path, cache: Path, size: int = 128) -> int:
    """Download missing packages into `cache`, write the data set into `folder`, and return its number of pictures."""
    net = wordnet(cache)
    records, pictures = [], []
    for source in (_emoji, _clipart):
        for record, pixels in source(cache, net, size):
            records.append(record)
            pictures.append(pixels)
    make_folder(folder)
    with new_file(folder / "pictures.npy") as file:
        np.save(file, np.stack(pictures))
    for record, pixels in zip(records, pictures, strict=True):
        if is_labelled(dataclasses.asdict(record)):
            path = folder / "emoji" / record.label.replace("/", " ") / f"{record.id}.png"
            make_folder(path.parent)
            write_atomically(path, Image.from_array(pixels).data)
    lines = [json.dumps(dataclasses.asdict(record), ensure_ascii=False) for record in records]
    write_atomically(folder / "records.jsonl", ("\n".join(lines) + "\n").encode())
    return len(records)


def is_labelled(record: dict[str, Any]) -> bool:
    """Whether a picture belongs to the training set of models with labels: the training emoji of animals and foods."""
    return record["source"] == "emoji" and record["group"] in LABELLED and record["split"] == "train"


def load(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Pictures (memory-mapped, read-only) and records of a data set. Raises StudioError if there is none."""
    if not (folder / "records.jsonl").exists():
        raise StudioError(f"`{folder}` holds no data set", hint="make it with `python -m recipes.data`")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]
    return np.load(folder / "pictures.npy", mmap_mode="r"), records
