"""The generator `clip-label`: zero-shot classification of pictures by CLIP (Radford et al. 2021, section 3.1).

The probabilities are a softmax over the cosine similarities of the picture with each label's text, at CLIP's own
temperature. They compare the labels with each other, and cannot say that no label fits.
Importing this loads no torch; `load` does.

Try it: `studio label cat.png dog.png --labels cat,dog`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

import studio
from studio import devices
from studio_clip.family import MAX_PICTURES, MODEL, PER_STEP, ClipGenerator

if TYPE_CHECKING:
    from torch import Tensor

    from studio_clip.model import ClipModel
    from studio_clip.stock import OpenClipModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelling(studio.State):
    """The labels' embeddings (L, D) and the probabilities so far (n, L), both float32 on the CPU, and the inputs."""

    labels: Tensor
    shares: Tensor
    inputs: Any = studio.unsaved()


class LabelGenerator(ClipGenerator):
    """Classify pictures among given labels; the output is JSON with each picture's labels and probabilities."""

    name = "clip-label"
    output = studio.Text

    class Inputs(studio.Inputs):
        """Pictures and labels."""

        images: list[studio.Image] = studio.field(help="pictures to label", min_length=1, max_length=MAX_PICTURES)
        labels: list[str] = studio.field(help="labels to choose from", min_length=2, max_length=1000)
        prompt: str = studio.field(
            "{}", help="prompt template; {} is replaced by the label: `a picture of {}`", max_length=200
        )
        top: int = studio.field(5, ge=1, le=1000, help="maximum number of labels per picture")
        model: str = MODEL

        @model_validator(mode="after")
        def _good(self) -> Self:
            if blank := [each for each in self.labels if not each.strip()]:
                raise ValueError(f"a label is empty: {blank[0]!r}")
            if twice := [each for each in self.labels if self.labels.count(each) > 1]:
                raise ValueError(f"the label `{twice[0]}` occurs twice: remove one")
            if self.prompt.count("{}") != 1:
                raise ValueError(f"`prompt` is `{self.prompt}`; it must contain {{}} once, for the label")
            return self

    def start(self, model: ClipModel | OpenClipModel, inputs: Any, rng: studio.Rng) -> Labelling:
        """Embed the labels."""
        import torch

        texts = [inputs.prompt.replace("{}", each) for each in inputs.labels]
        parts = [model.encode_text(texts[first : first + PER_STEP]).cpu() for first in range(0, len(texts), PER_STEP)]
        steps = -(-len(inputs.images) // PER_STEP)
        return Labelling(steps=steps, labels=torch.cat(parts), shares=torch.empty(0, len(texts)), inputs=inputs)

    def step(self, model: ClipModel | OpenClipModel, states: Sequence[Labelling]) -> list[Labelling]:
        """Label the next pictures of each."""
        import torch

        made = []
        for state in states:
            some = state.inputs.images[len(state.shares) : len(state.shares) + PER_STEP]
            cosines = devices.download(model.encode_image(each.pil for each in some)) @ state.labels.T  # (n, L)
            shares = torch.cat([state.shares, (model.temperature * cosines).softmax(-1)])
            made.append(replace(state, position=state.position + 1, shares=shares))
        return made

    def finish(self, model: ClipModel | OpenClipModel, state: Labelling) -> studio.Text:
        """The labels of each picture, the most likely first."""
        top = min(state.inputs.top, len(state.inputs.labels))
        shares, places = state.shares.topk(top, -1)
        labels = [
            [{"label": state.inputs.labels[place], "share": round(share, 4)} for place, share in zip(*row, strict=True)]
            for row in zip(places.tolist(), shares.tolist(), strict=True)
        ]
        return studio.Text(json.dumps(labels, ensure_ascii=False, indent=1))
