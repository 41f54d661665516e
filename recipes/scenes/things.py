"""The objects of scenes: `things.txt`, ordered by how often people ask for them.

Try it: `read()[0].english[0].plural` is `cats`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("things.txt")


@dataclass(frozen=True)
class Noun:
    """An English name: singular and plural."""

    singular: str
    plural: str


@dataclass(frozen=True)
class Thing:
    """An object that scenes can have.

    Attributes:
        label: emojibase's English label, which names the object in the hold-out rules and in the records.
        english, chinese: its names, the plainest first; at least one each.
        measure: the Chinese measure word.
        air: whether it is drawn in the upper half of a landscape.
    """

    label: str
    english: tuple[Noun, ...]
    chinese: tuple[str, ...]
    measure: str
    air: bool


def plural(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _noun(text: str) -> Noun:
    singular, _, irregular = text.strip().partition(">")
    return Noun(singular, irregular or plural(singular))


@cache
def read(file: Path = FILE) -> tuple[Thing, ...]:
    """All objects, the most frequent first. Raises ValueError for a line without four or five fields."""
    made = []
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (4, 5) or fields[4:] not in ([], ["air"]):
            raise ValueError(f"`{line}` in {file.name} is not `label | names | Chinese names | measure word [| air]`")
        label, english, chinese, measure = fields[:4]
        names = tuple(_noun(name) for name in english.split(","))
        made.append(Thing(label, names, tuple(name.strip() for name in chinese.split(",")), measure, len(fields) == 5))
    return tuple(made)


def weight(rank: int) -> float:
    """The sampling weight of the object at this rank (from 0), relative to the first: falls to 1/4 at rank 180."""
    return 1 / (1 + rank / 60)
