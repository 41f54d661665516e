"""The generator `clip-rank`: how well each of several pictures goes with a text, by CLIP. Workflows pick by it.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio_clip.embed import EmbedGenerator

if TYPE_CHECKING:
    from studio_clip.model import Clip

MOST = 1000
TOGETHER = 32  # pictures in a step


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking(studio.State):
    """The text's unit vector as numbers, the scores so far, and the inputs."""

    text: tuple[float, ...]
    scores: tuple[float, ...] = ()
    inputs: Any = studio.unsaved()


class RankGenerator(studio.Generator):
    """Score pictures against a text: the cosine of each with it, in the order of the pictures."""

    name = "clip-rank"
    output = studio.Embedding
    streams: ClassVar[bool] = True
    weights = EmbedGenerator.weights
    load = EmbedGenerator.load  # one function: both have one model

    class Inputs(studio.Inputs):
        """A text, and the pictures."""

        text: str = studio.field(help="words in English or Chinese", min_length=1, max_length=2000)
        images: list[studio.Image] = studio.field(help="the pictures to score", min_length=1, max_length=MOST)

    def start(self, model: Clip, inputs: Any, rng: studio.Rng) -> Ranking:
        """Embed the text."""
        text = model.texts([inputs.text])[0].tolist()
        return Ranking(steps=-(-len(inputs.images) // TOGETHER), text=tuple(text), inputs=inputs)

    def step(self, model: Clip, states: Sequence[Ranking]) -> list[Ranking]:
        """Score the next pictures of each. They become square on white, as those are that CLIP was trained on."""
        import numpy as np

        from studio_datasets.record import on_white

        made = []
        for state in states:
            some = state.inputs.images[len(state.scores) : len(state.scores) + TOGETHER]
            pictures = model.pictures(np.stack([on_white(each.pil, model.size) for each in some]))  # (n, D)
            scores = (pictures @ pictures.new_tensor(state.text)).tolist()  # (n,)
            made.append(replace(state, position=state.position + 1, scores=(*state.scores, *scores)))
        return made

    def finish(self, model: Clip, state: Ranking) -> studio.Embedding:
        """The scores."""
        import numpy as np

        return studio.Embedding(np.array(state.scores, np.float32))
