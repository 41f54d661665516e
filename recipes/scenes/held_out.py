"""The combinations that are held out from training scenes, to evaluate the image model on them.

A combination is held out by a checksum of its text, so the result is the same on every machine without a list. Objects
have emojibase's English labels, colours and backgrounds the names of `scene`.

Try it: `is_held_out("colour:cat|red")`
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

RELATIONS = ("left of", "right of", "above", "below", "on", "in front of")
ONE_IN = {"colour": 5, "pair": 4, "count": 5, "relation": 5, "ground": 5}
"""The rules, and one in how many combinations each holds out."""

_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def is_held_out(fact: str) -> bool:
    """Whether the fact, a rule's name and a text joined by a colon, is held out."""
    rule, _, text = fact.partition(":")
    return crc32(text.encode()) % ONE_IN[rule] == 0


def implied(a: str, relation: str, b: str) -> Iterator[tuple[str, str, str]]:
    """All relations that a picture of this relation shows: a cat left of a dog is also a dog right of a cat.

    An object on another is above it too.
    """
    yield a, relation, b
    if relation == "on":
        yield from implied(a, "above", b)
    if relation in _INVERSE:
        yield b, _INVERSE[relation], a
