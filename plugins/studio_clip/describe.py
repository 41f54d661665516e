"""The generator `clip-describe`: which of several words fits a picture best, by CLIP; workflows use it in prompts.

Importing this loads no torch; `load` does.

Try it: `studio generate clip-describe --image cat.png --words cat --words dog`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

import studio
from studio import devices
from studio_clip.family import MODEL, PER_STEP, ClipGenerator

if TYPE_CHECKING:
    from studio_clip.model import ClipModel
    from studio_clip.stock import OpenClipModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Describing(studio.State):
    """The picture's embedding, its cosine similarity with each word so far, and the inputs."""

    picture: tuple[float, ...]
    cosines: tuple[float, ...] = ()
    inputs: Any = studio.unsaved()


class DescribeGenerator(ClipGenerator):
    """Choose the word that fits a picture best."""

    name = "clip-describe"
    output = studio.Text

    class Inputs(studio.Inputs):
        """A picture and words."""

        image: studio.Image = studio.field(help="picture to describe")
        words: list[str] = studio.field(help="candidate words or phrases", min_length=2, max_length=1000)
        model: str = MODEL

        @model_validator(mode="after")
        def _good(self) -> Any:
            if any(not each.strip() for each in self.words):
                raise ValueError("one of `words` is empty: remove it")
            return self

    def start(self, model: ClipModel | OpenClipModel, inputs: Any, rng: studio.Rng) -> Describing:
        """Embed the picture."""
        picture = model.encode_image([inputs.image.pil])[0].tolist()
        return Describing(steps=-(-len(inputs.words) // PER_STEP), picture=tuple(picture), inputs=inputs)

    def step(self, model: ClipModel | OpenClipModel, states: Sequence[Describing]) -> list[Describing]:
        """Compare the next words of each."""
        import torch

        made = []
        for state in states:
            some = state.inputs.words[len(state.cosines) : len(state.cosines) + PER_STEP]
            words = model.encode_text(some)  # (n, D)
            cosines = devices.download(words @ model.to_device(torch.tensor(state.picture))).tolist()
            made.append(replace(state, position=state.position + 1, cosines=(*state.cosines, *cosines)))
        return made

    def finish(self, model: ClipModel | OpenClipModel, state: Describing) -> studio.Text:
        """The word with the highest cosine similarity; of equals the first."""
        best = max(range(len(state.cosines)), key=state.cosines.__getitem__)
        return studio.Text(state.inputs.words[best])
