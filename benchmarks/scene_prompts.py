"""The prompts of `scenes.py`: fifty scenes per skill, with combinations that are held out from training.

Objects are the 300 that people ask for most (`recipes/scenes/things.txt`); `recipes/scenes/held_out.py` defines the
held-out combinations. The prompts are the same on every machine.

Try it: `prompts("two")[0]`
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from recipes.scenes import held_out, scene, things
from recipes.scenes.scene import Part, Scene

SKILLS = ("object", "colour", "count", "two", "position", "attribution", "ground")
THINGS, PROMPTS = 300, 50
PLACES = ("left of", "right of", "above", "below", "on")


def _propose(skill: str, at: int, rng: random.Random, labels: Sequence[str]) -> tuple[Scene, str]:
    """A scene that asks for the skill, and the rule by which it must be held out (empty for none)."""
    a, b = rng.sample(labels, 2)
    colours = rng.sample(scene.COLOURS, 2)
    if skill == "object":
        return Scene((Part(a),)), ""
    if skill == "colour":
        return Scene((Part(a, colours[0]),)), "colour"
    if skill == "count":
        return Scene((Part(a, "", 1 + at % 4),)), "count" if at % 4 else ""
    if skill == "two":
        return Scene((Part(a), Part(b)), rng.choice(PLACES[:4]), said=False), "pair"
    if skill == "position":
        return Scene((Part(a), Part(b)), PLACES[at % len(PLACES)]), "relation"
    if skill == "attribution":
        return Scene((Part(a, colours[0]), Part(b, colours[1])), rng.choice(PLACES[:4]), said=False), "pair"
    return Scene((Part(a),), ground=scene.GROUNDS[at % len(scene.GROUNDS)]), "ground"


def prompts(skill: str, count: int = PROMPTS) -> list[Scene]:
    """The scenes that a skill is judged on: drawn with a seed of the skill's name until one fits, each once."""
    rng = random.Random(f"judge {skill}")
    labels = [thing.label for thing in things.read()[:THINGS]]
    made: list[Scene] = []
    while len(made) < count:
        proposed, rule = _propose(skill, len(made), rng, labels)
        named = any(part.colour and part.thing in scene.FIXED for part in proposed.parts)
        if not named and proposed not in made and (not rule or _kept(proposed, rule)):
            made.append(proposed)
    return made


def _kept(proposed: Scene, rule: str) -> bool:
    """Whether the very combination that is asked for is held out."""
    if rule == "relation":
        a, b = (part.thing for part in proposed.parts)
        return held_out.is_held_out(f"relation:{a} {proposed.relation} {b}")
    return any(fact.startswith(f"{rule}:") for fact in proposed.held_out())
