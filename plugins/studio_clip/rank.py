"""The generator `clip-rank`: CLIP scores of pictures for a text, such as for the best of n in workflows.

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
from studio_clip.family import MAX_PICTURES, MODEL, PER_STEP, ClipGenerator

if TYPE_CHECKING:
    from studio_clip.model import ClipModel
    from studio_clip.stock import OpenClipModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking(studio.State):
    """The text's embedding, the scores so far, and the inputs."""

    text: tuple[float, ...]
    scores: tuple[float, ...] = ()
    inputs: Any = studio.unsaved()


class RankGenerator(ClipGenerator):
    """Score pictures by their cosine similarity with a text, in the order of the pictures."""

    name = "clip-rank"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        """A text and pictures."""

        text: str = studio.field(help="text to match, English or Chinese", min_length=1, max_length=2000)
        images: list[studio.Image] = studio.field(help="pictures to score", min_length=1, max_length=MAX_PICTURES)
        model: str = MODEL

    def start(self, model: ClipModel | OpenClipModel, inputs: Any, rng: studio.Rng) -> Ranking:
        """Embed the text."""
        text = model.encode_text([inputs.text])[0].tolist()
        return Ranking(steps=-(-len(inputs.images) // PER_STEP), text=tuple(text), inputs=inputs)

    def step(self, model: ClipModel | OpenClipModel, states: Sequence[Ranking]) -> list[Ranking]:
        """Score the next pictures of each."""
        import torch

        made = []
        for state in states:
            some = state.inputs.images[len(state.scores) : len(state.scores) + PER_STEP]
            pictures = model.encode_image(each.pil for each in some)  # (n, D)
            scores = devices.download(pictures @ model.to_device(torch.tensor(state.text)))  # (n,)
            Reading(scores, "the scores")
            made.append(replace(state, position=state.position + 1, scores=(*state.scores, *scores.tolist())))
        return made

    def finish(self, model: ClipModel | OpenClipModel, state: Ranking) -> studio.Embedding:
        """The scores."""
        import numpy as np

        return studio.Embedding(np.array(state.scores, np.float32))
