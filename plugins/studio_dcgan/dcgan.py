"""The generators `dcgan` and `dcgan-walk`: pictures of 64x64 pixels in one step, and videos from picture to picture.

The starter weights know the emoji of animals and foods by name, and draw about half of them so that a person recognises
them (docs/dcgan.md). Importing this loads no torch; `load` does.

Try it: `studio generate dcgan --of banana -n 8`
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio.errors import InputError, UnknownName
from studio.models.formats import is_pickle, refuse_pickle

if TYPE_CHECKING:
    from torch import Tensor

    from studio_dcgan.checkpoint import Found
    from studio_dcgan.model import Generator

STARTER = Path(__file__).parent / "weights" / "starter.safetensors"
CHUNK = 64  # frames of a walk that one step draws

_MODEL: Any = studio.model_field(
    "a safetensors file in the layout of PyTorch's DCGAN tutorial, or a pulled model; empty is Studio's own"
)
_TRUNCATION: Any = studio.field(
    4.0, ge=0.05, le=4, help="no latent lies further from 0 than this; less is more alike and more typical"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing(studio.State):
    """Pictures before they are drawn and after.

    Attributes:
        x: (N, latent + embedded) float32, latents and the embedding of the class, of each picture; on the model's
            device.
        pixels: (M, 64, 64, 3) uint8 on the CPU, the pictures drawn so far.
        fps: pictures a second, of a walk.
    """

    x: Tensor
    pixels: Tensor
    fps: float = 0.0


class _Family(studio.Generator):
    """What both generators share: the model that an input names, and its step."""

    max_batch: ClassVar[int] = 64
    streams: ClassVar[bool] = True

    def __init__(self, path: Path = STARTER) -> None:
        """Use the weights at `path`, a file that `checkpoint.find` reads, where inputs name none."""
        self.path = path

    def found(self, ref: studio.ModelRef) -> Found:
        """The model on disk. Raises WeightsError, or ModelError for a pickle."""
        from studio_dcgan.checkpoint import find

        path = ref.path or self.path
        if is_pickle(path.name):
            raise refuse_pickle(str(path), f"file:{path}")
        return find(path)

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The one file. Raises WeightsError if it is no DCGAN's."""
        return [self.found(ref).path]

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Generator:
        """Build the generator."""
        return self.found(ref).build(device, dtype)

    def step(self, model: Generator, states: Sequence[Drawing]) -> list[Drawing]:
        """Draw the next pictures of every state in one forward pass."""
        import torch

        todo = [state.x[len(state.pixels) : len(state.pixels) + CHUNK] for state in states]
        x = torch.cat([model.here(each) for each in todo]).to(next(model.parameters()).dtype)
        made = model.pixels(x).split([len(each) for each in todo])  # of (n, 64, 64, 3) each
        return [
            replace(state, position=state.position + 1, pixels=torch.cat([state.pixels, pixels]))
            for state, pixels in zip(states, made, strict=True)
        ]

    def batch_key(self, state: Drawing) -> Hashable:
        """All requests of one model share steps: whole chunks of a walk with their like, so that a step stays small."""
        return min(len(state.x) - len(state.pixels), CHUNK)

    def facts(self, model: Generator, inputs: Any) -> dict[str, Any]:
        """The model's shape."""
        return {"model": {"latents": model.latent, "width": model.width, "classes": model.classes}}


def _class_of(model: Generator, name: str, rng: studio.Rng) -> int:
    """The number of a class; of an empty name, a random one. Raises UnknownName, InputError."""
    if not name:
        return rng.python.randrange(max(len(model.names), 1))
    if not model.names:
        raise InputError("of", f"`of` is `{name}`, but the model has no classes", hint="leave it out")
    folded = {each.casefold(): index for index, each in enumerate(model.names)}
    if name.casefold().strip() not in folded:
        raise UnknownName("class of the model", name, model.names)
    return folded[name.casefold().strip()]


class DcganGenerator(_Family):
    """Draw a small picture of a class, by a DCGAN in one step."""

    name = "dcgan"
    output = studio.Image

    class Inputs(studio.Inputs):
        """What `studio generate dcgan` asks for."""

        of: str = studio.field("", help="the class to draw, such as `banana`; empty is any", max_length=200)
        truncation: float = _TRUNCATION
        model: str = _MODEL

    def start(self, model: Generator, inputs: Any, rng: studio.Rng) -> Drawing:
        """Draw the latents."""
        import torch

        from studio_dcgan.latents import truncated

        label = model.here(torch.tensor([_class_of(model, inputs.of, rng)]))
        z = model.here(truncated(1, model.latent, inputs.truncation, rng.torch))
        return Drawing(x=model.joined(z, label), pixels=torch.empty(0, *model.picture, dtype=torch.uint8))

    def finish(self, model: Generator, state: Drawing) -> studio.Image:
        """The picture."""
        return studio.Image.from_array(state.pixels[0].numpy())


class DcganWalk(_Family):
    """Film a walk among a DCGAN's pictures, from latents to latents and class to class."""

    name = "dcgan-walk"
    output = studio.Video

    class Inputs(studio.Inputs):
        """What `studio generate dcgan-walk` asks for."""

        of: list[str] = studio.field(
            default_factory=list, help="the classes on the way, one or more; given none, each stop is of any"
        )
        stops: int = studio.field(
            4, ge=2, le=64, help="pictures to come by; `of` is gone through again if it is shorter"
        )
        frames: int = studio.field(72, ge=2, le=2000, help="frames from the first picture to the last")
        fps: float = studio.field(24.0, ge=1, le=60, help="frames a second")
        truncation: float = _TRUNCATION
        model: str = _MODEL

    def start(self, model: Generator, inputs: Any, rng: studio.Rng) -> Drawing:
        """Draw the latents of the stops, and those on the way between."""
        import torch

        from studio_dcgan.latents import between, slerp, truncated

        names = inputs.of or [""]
        labels = torch.tensor([_class_of(model, names[stop % len(names)], rng) for stop in range(inputs.stops)])
        z = truncated(inputs.stops, model.latent, inputs.truncation, rng.torch)
        way = torch.linspace(0, inputs.stops - 1, inputs.frames)
        joined = model.joined(model.here(z), model.here(labels))
        x = torch.cat([model.here(slerp(z, way)), between(joined[:, model.latent :], model.here(way))], 1)
        return Drawing(
            steps=-(-inputs.frames // CHUNK), x=x, fps=inputs.fps,
            pixels=torch.empty(0, *model.picture, dtype=torch.uint8),
        )  # fmt: skip

    def finish(self, model: Generator, state: Drawing) -> studio.Video:
        """The frames as a video."""
        return studio.Video(state.pixels.numpy(), state.fps)

    def preview(self, model: Generator, state: Drawing) -> studio.Image | None:
        """The last frame drawn."""
        return studio.Image.from_array(state.pixels[-1].numpy()) if len(state.pixels) else None
