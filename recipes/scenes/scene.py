"""What a scene is, and scenes drawn at random: one to five things, their colours, where they are, on what ground.

Knows nothing of pixels and words.

Try it: `draw(random.Random(0))` is a scene that no hold-out rule keeps for judging
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipes.scenes import held_out, things

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "turquoise")
GROUNDS = ("grass", "night", "sea", "sky", "sand", "street", "room", "snow", "mountains", "sunset", "forest")
"""Grounds with a name; `red background` and the like are plain ones, and an empty string is plain white, unnamed."""
FIXED = frozenset(
    thing.label
    for thing in things.read()
    if any(noun.singular.split()[0] in COLOURS[:-1] for noun in thing.english[:1])
)
"""Things whose name is a colour already, which are drawn as they are: a black cat."""


@dataclass(frozen=True)
class Part:
    """Some things of one kind: the thing's label, its colour (empty for its own), and how many there are (1 to 5)."""

    thing: str
    colour: str = ""
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        parts: none (the ground alone), one or two kinds of things.
        relation: where the first of two parts is, seen from the second: one of `held_out.RELATIONS`.
        said: whether captions tell that relation, or only that both are there.
        ground: one of `GROUNDS`, `<colour> background`, or empty for plain white.
    """

    parts: tuple[Part, ...]
    relation: str = ""
    said: bool = True
    ground: str = ""

    def facts(self) -> Iterator[str]:
        """All that the hold-out rules ask about, in their own notation, each with its rule's name before a colon."""
        for part in self.parts:
            if part.colour:
                yield f"colour:{part.thing}|{part.colour}"
            if part.count > 1:
                yield f"count:{part.count} {part.thing}"
            if self.ground:
                yield f"ground:{part.thing} @ {self.ground}"
        if len(self.parts) == 2:
            a, b = (part.thing for part in self.parts)
            yield "pair:" + "|".join(sorted((a, b)))
            for first, relation, second in held_out.implied(a, self.relation, b):
                yield f"relation:{first} {relation} {second}"

    def held_out(self) -> list[str]:
        """Its facts that are kept for judging; none may stand in training."""
        return [fact for fact in self.facts() if held_out.is_held_out(fact)]


def _part(rng: random.Random, label: str, colour: float, counts: Sequence[float]) -> Part:
    count = rng.choices(range(1, len(counts) + 1), counts)[0]
    coloured = rng.random() < colour and label not in FIXED
    return Part(label, rng.choice(COLOURS) if coloured else "", count)


def propose(rng: random.Random) -> Scene:
    """A scene at random, whether it may be trained on or not."""
    known = things.read()
    labels, weights = [thing.label for thing in known], [things.weight(rank) for rank in range(len(known))]
    if rng.random() < 0.02:
        return Scene((), ground=rng.choice(GROUNDS))
    ground = rng.choice(GROUNDS) if rng.random() < 0.35 else ""
    if not ground and rng.random() < 0.08:
        ground = f"{rng.choice(COLOURS)} background"
    if rng.random() < 0.6:
        (label,) = rng.choices(labels, weights)
        return Scene((_part(rng, label, 0.45, (0.48, 0.18, 0.16, 0.12, 0.06)),), ground=ground)
    first, second = rng.choices(labels, weights), rng.choices(labels, weights)
    relation = rng.choices(held_out.RELATIONS, (4, 4, 3, 3, 3, 2))[0]
    many = (1.0,) if relation in ("on", "in front of") else (0.85, 0.15)
    colour = 0.7 if rng.random() < 0.45 else 0.1
    parts = tuple(_part(rng, label, colour, many) for label in (*first, *second))
    return Scene(parts, relation, rng.random() < 0.65 or relation in ("on", "in front of"), ground)


def draw(rng: random.Random) -> Scene:
    """A scene at random that may be trained on: two parts are of unlike things, and no fact is held out."""
    while True:
        scene = propose(rng)
        if len({part.thing for part in scene.parts}) == len(scene.parts) and not scene.held_out():
            return scene
