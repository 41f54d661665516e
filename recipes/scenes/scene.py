"""Scenes, and random sampling of them: one to five objects, their colours, their relation, and the background.

Try it: `draw(random.Random(0))` is a scene without held-out combinations
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipes.scenes import held_out, things

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "turquoise")
GROUNDS = ("grass", "night", "sea", "sky", "sand", "street", "room", "snow", "mountains", "sunset", "forest")
"""Named backgrounds; `red background` and the like are plain ones, and an empty string is plain white."""
FIXED = frozenset(
    thing.label
    for thing in things.read()
    if any(noun.singular.split()[0] in COLOURS[:-1] for noun in thing.english[:1])
)
"""Objects whose name includes a colour, which are never recoloured: a black cat."""


@dataclass(frozen=True)
class Part:
    """Objects of one kind: the label, the colour (empty for the original one), and their number (1 to 5)."""

    thing: str
    colour: str = ""
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """The content of a picture.

    Attributes:
        parts: none (only the background), one or two kinds of objects.
        relation: of the first part to the second: one of `held_out.RELATIONS`.
        said: whether captions contain the relation, or only both objects.
        ground: one of `GROUNDS`, `<colour> background`, or empty for plain white.
    """

    parts: tuple[Part, ...]
    relation: str = ""
    said: bool = True
    ground: str = ""

    def facts(self) -> Iterator[str]:
        """The facts for the hold-out rules, each with its rule's name before a colon."""
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
        """Its facts that are held out from training."""
        return [fact for fact in self.facts() if held_out.is_held_out(fact)]


def _part(rng: random.Random, label: str, colour: float, counts: Sequence[float]) -> Part:
    count = rng.choices(range(1, len(counts) + 1), counts)[0]
    coloured = rng.random() < colour and label not in FIXED
    return Part(label, rng.choice(COLOURS) if coloured else "", count)


def propose(rng: random.Random) -> Scene:
    """A random scene, which may contain held-out facts."""
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
    """A random training scene: two parts have different objects, and no fact is held out."""
    while True:
        scene = propose(rng)
        if len({part.thing for part in scene.parts}) == len(scene.parts) and not scene.held_out():
            return scene
