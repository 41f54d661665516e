"""The plugin's methods of `Studio`: `image` and `images`, and the selection of the best of several pictures.

`Studio.rank` scores the pictures.

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
    """Generate a picture with the generator `image`. `inputs` are as in `Studio.submit`; raises like it."""
    return images(studio, prompt, 1, seed=seed, **inputs)[0]


def images(
    studio: Studio, prompt: str, n: int, *, best: int | None = None, seed: int | None = None, **inputs: Any
) -> list[Image]:
    """Make n pictures (1 to 1000) in batches; their seeds are seed, seed + 1, … If one fails, all are cancelled.

    With `best` only that many are returned, those with the highest CLIP score for the prompt, best first. Raises
    InputError for a `best` outside 1 to n, and as `Studio.submit_many`.
    """
    from studio.engine.ticket import wait

    if best is not None and not 1 <= best <= n:
        raise InputError("best", f"`best` is {best}; it must be from 1 to `n`, which is {n}")
    tickets = studio.submit_many("image", n, seed=seed, prompt=prompt, **inputs)
    made = [media for media in wait(tickets) if isinstance(media, Image)]
    if best is None:
        return made
    request = {name: inputs[name] for name in ("client", "priority", "time_limit_s") if name in inputs}
    return [made[index] for index, _ in best_of(studio, prompt, made, best, **request)]


def best_of(studio: Studio, prompt: str, pictures: Sequence[Image], keep: int, **more: Any) -> list[tuple[int, float]]:
    """The index and CLIP score of the `keep` pictures that match the prompt best, best first.

    `more` is passed to `Studio.rank`. Raises as it does.
    """
    scores = studio.rank(prompt, pictures, **more)
    ranking = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [(index, scores[index]) for index in ranking[:keep]]
