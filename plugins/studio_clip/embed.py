"""The generators `embed` and `embed-pictures`: texts and pictures to vectors, by CLIP; near vectors tell of likeness.

Importing this loads no torch; `load` does.

Try it: `studio embed "a red apple"`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

import studio
from studio import devices
from studio.finite import Reading
from studio_clip.family import MODEL, MOST, TOGETHER, Family

if TYPE_CHECKING:
    from torch import Tensor

    from studio_clip.model import Clip
    from studio_clip.stock import Stock


class EmbedGenerator(Family):
    """Embed a text or a picture: a unit vector, whose cosine with another says how well the two go together."""

    name = "embed"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        """One of both."""

        text: str = studio.field("", help="words in English or Chinese", max_length=2000)
        image: studio.Image | None = studio.field(None, help="the picture to embed")
        model: str = MODEL

        @model_validator(mode="after")
        def _one(self) -> Self:
            if bool(self.text.strip()) == (self.image is not None):
                raise ValueError("give a text or a picture, and not both")
            return self

    def generate(self, model: Clip | Stock, inputs: Any, rng: studio.Rng) -> studio.Embedding:
        """One forward pass of one tower."""
        made = model.texts([inputs.text]) if inputs.image is None else model.images([inputs.image.pil])
        vector = devices.download(made[0])
        Reading(vector, "the embedding")
        return studio.Embedding(vector.numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded(studio.State):
    """The pictures' vectors so far, float32 (n, D) on the CPU, and the inputs."""

    vectors: Tensor
    inputs: Any = studio.unsaved()


class EmbedPicturesGenerator(Family):
    """Embed several pictures: their unit vectors one after another, in the order of the pictures."""

    name = "embed-pictures"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        """The pictures."""

        images: list[studio.Image] = studio.field(help="the pictures to embed", min_length=1, max_length=MOST)
        model: str = MODEL

    def start(self, model: Clip | Stock, inputs: Any, rng: studio.Rng) -> Embedded:
        """Nothing is done yet."""
        import torch

        return Embedded(steps=-(-len(inputs.images) // TOGETHER), vectors=torch.empty(0), inputs=inputs)

    def step(self, model: Clip | Stock, states: Sequence[Embedded]) -> list[Embedded]:
        """Embed the next pictures of each."""
        import torch

        made = []
        for state in states:
            done = state.position * TOGETHER
            some = state.inputs.images[done : done + TOGETHER]
            vectors = devices.download(model.images(each.pil for each in some))  # (n, D)
            joined = torch.cat([state.vectors, vectors]) if done else vectors
            made.append(replace(state, position=state.position + 1, vectors=joined))
        return made

    def finish(self, model: Clip | Stock, state: Embedded) -> studio.Embedding:
        """All vectors as one."""
        return studio.Embedding(state.vectors.flatten().numpy())
