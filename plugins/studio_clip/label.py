"""The generator `clip-label`: which of several labels each picture has, by CLIP and without training on them.

Zero-shot classification (Radford et al. 2021, section 3.1): a softmax over the cosines of the picture with each label's
text, at CLIP's own temperature. The shares tell how the labels compare with each other; none says that no label fits.
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
from studio_clip.family import MODEL, MOST, TOGETHER, Family

if TYPE_CHECKING:
    from torch import Tensor

    from studio_clip.model import Clip
    from studio_clip.stock import Stock


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelling(studio.State):
    """The labels' vectors (L, D) and the shares so far (n, L), both float32 on the CPU, and the inputs."""

    labels: Tensor
    shares: Tensor
    inputs: Any = studio.unsaved()


class LabelGenerator(Family):
    """Tell which of some labels fits each picture best, as JSON: for each picture its labels with their shares."""

    name = "clip-label"
    output = studio.Text

    class Inputs(studio.Inputs):
        """Pictures and labels."""

        images: list[studio.Image] = studio.field(help="the pictures to label", min_length=1, max_length=MOST)
        labels: list[str] = studio.field(help="the labels to choose from", min_length=2, max_length=1000)
        prompt: str = studio.field(
            "{}", help="what is said of a label, which stands for {}: `a picture of {}`", max_length=200
        )
        top: int = studio.field(5, ge=1, le=1000, help="how many labels to tell of a picture, at the most")
        model: str = MODEL

        @model_validator(mode="after")
        def _good(self) -> Self:
            if blank := [each for each in self.labels if not each.strip()]:
                raise ValueError(f"a label is empty: {blank[0]!r}")
            if twice := [each for each in self.labels if self.labels.count(each) > 1]:
                raise ValueError(f"the label `{twice[0]}` stands there twice")
            if self.prompt.count("{}") != 1:
                raise ValueError(f"`prompt` is `{self.prompt}`, but must have one {{}}, where the label goes")
            return self

    def start(self, model: Clip | Stock, inputs: Any, rng: studio.Rng) -> Labelling:
        """Embed the labels."""
        import torch

        texts = [inputs.prompt.replace("{}", each) for each in inputs.labels]
        parts = [model.texts(texts[first : first + TOGETHER]).cpu() for first in range(0, len(texts), TOGETHER)]
        steps = -(-len(inputs.images) // TOGETHER)
        return Labelling(steps=steps, labels=torch.cat(parts), shares=torch.empty(0, len(texts)), inputs=inputs)

    def step(self, model: Clip | Stock, states: Sequence[Labelling]) -> list[Labelling]:
        """Label the next pictures of each."""
        import torch

        made = []
        for state in states:
            some = state.inputs.images[len(state.shares) : len(state.shares) + TOGETHER]
            cosines = devices.download(model.images(each.pil for each in some)) @ state.labels.T  # (n, L)
            shares = torch.cat([state.shares, (model.temperature * cosines).softmax(-1)])
            made.append(replace(state, position=state.position + 1, shares=shares))
        return made

    def finish(self, model: Clip | Stock, state: Labelling) -> studio.Text:
        """The labels of each picture, the likeliest first."""
        top = min(state.inputs.top, len(state.inputs.labels))
        shares, places = state.shares.topk(top, -1)
        told = [
            [{"label": state.inputs.labels[place], "share": round(share, 4)} for place, share in zip(*row, strict=True)]
            for row in zip(places.tolist(), shares.tolist(), strict=True)
        ]
        return studio.Text(json.dumps(told, ensure_ascii=False, indent=1))
