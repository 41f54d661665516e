"""The generator `clip-rank`: how well each of several pictures goes with a text, by CLIP. Workflows pick by it.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio_clip import places

if TYPE_CHECKING:
    from studio_clip.model import Clip

MOST = 1000
TOGETHER = 32  # pictures in a forward pass


class RankGenerator(studio.Generator):
    """Score pictures against a text: the cosine of each with it, in the order of the pictures."""

    name = "clip-rank"
    output = studio.Embedding
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """A text, and the pictures."""

        text: str = studio.field(help="words in English or Chinese", min_length=1, max_length=2000)
        images: list[studio.Image] = studio.field(help="the pictures to score", min_length=1, max_length=MOST)

    def weights(self) -> list[Path]:
        """As those of `embed`."""
        return places.files()

    def load(self, device: str, dtype: str) -> Clip:
        """As that of `embed`, with which it shares the model."""
        from studio_clip import model

        return model.load(device=device, dtype=dtype)

    def generate(self, model: Clip, inputs: Any, rng: studio.Rng) -> studio.Embedding:
        """Pictures become square on white, and go through the image tower some at a time."""
        import numpy as np

        from studio_datasets.record import on_white

        text = model.texts([inputs.text])  # (1, D)
        scores = []
        for first in range(0, len(inputs.images), TOGETHER):
            some = np.stack([on_white(each.pil, model.size) for each in inputs.images[first : first + TOGETHER]])
            scores.append((model.pictures(some) @ text.T)[:, 0].cpu().numpy())  # (n,)
        return studio.Embedding(np.concatenate(scores))
