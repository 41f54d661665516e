"""The generator `embed`: a text or a picture to a vector, by CLIP; near vectors are of what is alike.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

import studio
from studio_clip import places

if TYPE_CHECKING:
    from studio_clip.model import Clip


class EmbedGenerator(studio.Generator):
    """Embed a text or a picture: a unit vector, whose cosine with another says how well the two go together."""

    name = "embed"
    output = studio.Embedding
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """One of both."""

        text: str = studio.field("", help="words in English or Chinese", max_length=2000)
        image: studio.Image | None = studio.field(None, help="the picture to embed")

        @model_validator(mode="after")
        def _one(self) -> Self:
            if bool(self.text.strip()) == (self.image is not None):
                raise ValueError("give a text or a picture, and not both")
            return self

    def weights(self) -> list[Path]:
        """Image tower, projection of texts and temperature, and the text tower of the image model."""
        return places.files()

    def load(self, device: str, dtype: str) -> Clip:
        """Both towers; the text tower is the image model's, if that is loaded with the same dtype."""
        from studio_clip import model

        return model.load(device=device, dtype=dtype)

    def generate(self, model: Clip, inputs: Any, rng: studio.Rng) -> studio.Embedding:
        """One forward pass of one tower. Pictures become square on white, as those are that it was trained on."""
        if inputs.image is None:
            return studio.Embedding(model.texts([inputs.text])[0].cpu().numpy())
        from studio_datasets.record import on_white

        return studio.Embedding(model.pictures(on_white(inputs.image.pil, model.size)[None])[0].cpu().numpy())
