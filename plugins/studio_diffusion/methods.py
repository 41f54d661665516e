"""What the plugin adds to `Studio`: `image` and `images`, and the choice of the best among several.

This module knows nothing of terminals, nor of how a picture is judged: `Studio.rank` does that.

Try it: ``studio.Studio().images("a red apple", 8, best=2)``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.errors import InputError
from studio.media import Image

if TYPE_CHECKING:
    from studio.api import Studio


def image(studio: Studio, prompt: str, *, seed: int | None = None, **inputs: Any) -> Image:
    """Make a picture with the generator `image`. `inputs` are as for `Studio.submit`; raises as it does."""
    return images(studio, prompt, 1, seed=seed, **inputs)[0]


def images(
    studio: Studio, prompt: str, n: int, *, best: int | None = None, seed: int | None = None, **inputs: Any
) -> list[Image]:
    """Make n pictures (1 to 1000) together; their seeds are seed, seed + 1, … If one fails, all are given up.

    With `best` only so many are returned, those that go best with the prompt by CLIP, the best first. Raises InputError
    for one that is not from 1 to n, and as `Studio.submit_many`.
    """
    from studio.engine.ticket import wait

    if best is not None and not 1 <= best <= n:
        raise InputError("best", f"`best` is {best}, but must be a whole number from 1 to `n`, which is {n}")
    tickets = studio.submit_many("image", n, seed=seed, prompt=prompt, **inputs)
    made = [media for media in wait(tickets) if isinstance(media, Image)]
    if best is None:
        return made
    return [made[index] for index, _ in best_of(studio, prompt, made, best)]


def best_of(studio: Studio, prompt: str, pictures: Sequence[Image], keep: int, **more: Any) -> list[tuple[int, float]]:
    """Which of the pictures go best with the prompt, the best first: the place and the score of each that is kept.

    `more` is passed on to `Studio.rank`. Raises as it does.
    """
    scores = studio.rank(prompt, pictures, **more)
    places = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [(place, scores[place]) for place in places[:keep]]
