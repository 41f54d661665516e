"""Which combinations no training scene may have, so that the image model can be judged on them.

A combination is held out by a checksum of its text, so that the answer is the same on every machine and no list is to
be kept. Things have emojibase's English labels, colours and grounds the composer's names.

Try it: `is_held_out("colour:cat|red")`
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

RELATIONS = ("left of", "right of", "above", "below", "on", "in front of")
ONE_IN = {"colour": 5, "pair": 4, "count": 5, "relation": 5, "ground": 5}
"""One in how many combinations is held out, by rule."""

_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def is_held_out(fact: str) -> bool:
    """Whether the fact, a rule's name and the rule's text joined by a colon, is kept for judging."""
    rule, _, text = fact.partition(":")
    return crc32(text.encode()) % ONE_IN[rule] == 0


def implied(a: str, relation: str, b: str) -> Iterator[tuple[str, str, str]]:
    """All relations between `a` and `b` that a picture of this one shows: a cat left of a dog is a dog right of it.

    What is on a thing is above it too.
    """
    yield a, relation, b
    if relation == "on":
        yield from implied(a, "above", b)
    if relation in _INVERSE:
        yield b, _INVERSE[relation], a
