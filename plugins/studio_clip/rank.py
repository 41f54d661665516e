"""The generator `clip-rank`: how well each of several pictures goes with a text, by CLIP. Workflows pick by it.

Importing this loads no torch; `load` does.

Try it: `studio rank "a red apple" *.png`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import studio
from studio import devices
from studio.finite import Reading
from studio_clip.family import MODEL, MOST, TOGETHER, Family

if TYPE_CHECKING:
    from studio_clip.model import Clip
    from studio_clip.stock import Stock


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking(studio.State):
    """The text's unit vector as numbers, the scores so far, and the inputs."""

    text: tuple[float, ...]
    scores: tuple[float, ...] = ()
    inputs: Any = studio.unsaved()


class RankGenerator(Family):
    """Score pictures against a text: the cosine of each with it, in the order of the pictures."""

    name = "clip-rank"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        """A text, and the pictures."""

        text: str = studio.field(help="words in English or Chinese", min_length=1, max_length=2000)
        images: list[studio.Image] = studio.field(help="the pictures to score", min_length=1, max_length=MOST)
        model: str = MODEL

    def start(self, model: Clip | Stock, inputs: Any, rng: studio.Rng) -> Ranking:
        """Embed the text."""
        text = model.texts([inputs.text])[0].tolist()
        return Ranking(steps=-(-len(inputs.images) // TOGETHER), text=tuple(text), inputs=inputs)

    def step(self, model: Clip | Stock, states: Sequence[Ranking]) -> list[Ranking]:
        """Score the next pictures of each."""
        import torch

        made = []
        for state in states:
            some = state.inputs.images[len(state.scores) : len(state.scores) + TOGETHER]
            pictures = model.images(each.pil for each in some)  # (n, D)
            scores = devices.download(pictures @ model.here(torch.tensor(state.text)))  # (n,)
            Reading(scores, "the scores")
            made.append(replace(state, position=state.position + 1, scores=(*state.scores, *scores.tolist())))
        return made

    def finish(self, model: Clip | Stock, state: Ranking) -> studio.Embedding:
        """The scores."""
        import numpy as np

        return studio.Embedding(np.array(state.scores, np.float32))
