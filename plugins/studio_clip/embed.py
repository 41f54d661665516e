"""The generators `embed` and `embed-pictures`: CLIP embeddings of texts and pictures.

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
from studio_clip.family import MAX_PICTURES, MODEL, PER_STEP, ClipGenerator

if TYPE_CHECKING:
    from torch import Tensor

    from studio_clip.model import ClipModel
    from studio_clip.stock import OpenClipModel


class EmbedGenerator(ClipGenerator):
    """Embed a text or a picture as a unit vector; the cosine similarity of two vectors measures how well they match."""

    name = "embed"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        """A text or a picture."""

        text: str = studio.field("", help="text to embed, English or Chinese", max_length=2000)
        image: studio.Image | None = studio.field(None, help="picture to embed")
        model: str = MODEL

        @model_validator(mode="after")
        def _one(self) -> Self:
            if bool(self.text.strip()) == (self.image is not None):
                raise ValueError("give either `text` or `image`")
            return self

    def generate(self, model: ClipModel | OpenClipModel, inputs: Any, rng: studio.Rng) -> studio.Embedding:
        """One forward pass of one tower."""
        made = model.encode_text([inputs.text]) if inputs.image is None else model.encode_image([inputs.image.pil])
        vector = devices.download(made[0])
        Reading(vector, "the embedding")
        return studio.Embedding(vector.numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded(studio.State):
    """The embeddings so far, float32 (n, D) on the CPU, and the inputs."""

    vectors: Tensor
    inputs: Any = studio.unsaved()


class EmbedPicturesGenerator(ClipGenerator):
    """Embed several pictures: their unit vectors, concatenated in the order of the pictures."""

    name = "embed-pictures"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        """The pictures."""

        images: list[studio.Image] = studio.field(help="pictures to embed", min_length=1, max_length=MAX_PICTURES)
        model: str = MODEL

    def start(self, model: ClipModel | OpenClipModel, inputs: Any, rng: studio.Rng) -> Embedded:
        """An empty result."""
        import torch

        return Embedded(steps=-(-len(inputs.images) // PER_STEP), vectors=torch.empty(0), inputs=inputs)

    def step(self, model: ClipModel | OpenClipModel, states: Sequence[Embedded]) -> list[Embedded]:
        """Embed the next pictures of each."""
        import torch

        made = []
        for state in states:
            done = state.position * PER_STEP
            some = state.inputs.images[done : done + PER_STEP]
            vectors = devices.download(model.encode_image(each.pil for each in some))  # (n, D)
            joined = torch.cat([state.vectors, vectors]) if done else vectors
            made.append(replace(state, position=state.position + 1, vectors=joined))
        return made

    def finish(self, model: ClipModel | OpenClipModel, state: Embedded) -> studio.Embedding:
        """All vectors, concatenated."""
        return studio.Embedding(state.vectors.flatten().numpy())
