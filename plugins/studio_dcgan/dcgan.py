"""The generators `dcgan` and `dcgan-walk`: pictures of 64x64 pixels in one step, and latent-space interpolation videos.

The starter weights were trained on the emoji of animals and foods by name; about half are recognizable (docs/dcgan.md).
Importing this loads no torch; `load` does.

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

    from studio_dcgan.checkpoint import CheckpointInfo
    from studio_dcgan.model import GeneratorNet


STARTER = Path(__file__).parent / "weights" / "starter.safetensors"
CHUNK = 64  # frames per step of a walk

_MODEL: Any = studio.model_field(
    "a safetensors file in the layout of PyTorch's DCGAN tutorial, or a pulled model; empty is Studio's own"
)
_TRUNCATION: Any = studio.field(4.0, ge=0.05, le=4, help="truncation of latents: lower is more typical and less varied")


@dataclass(frozen=True, kw_only=True, eq=False)
class DcganState(studio.State):
    """The state of a request: latents, and the pictures generated so far.

    Attributes:
        x: (N, latent + embedded) float32, the latents and class embedding of each picture, on the model's device.
        pixels: (M, 64, 64, 3) uint8 on the CPU, the pictures generated so far.
        fps: frames per second of a walk.
    """

    x: Tensor
    pixels: Tensor
    fps: float = 0.0


class _DcganBase(studio.Generator):
    """The base of both generators: loading the model, and the step."""

    max_batch: ClassVar[int] = 64
    streams: ClassVar[bool] = True

    def __init__(self, path: Path = STARTER) -> None:
        """`path`, a file that `checkpoint.find` reads, is the default model."""
        self.path = path

    def found(self, ref: studio.ModelRef) -> CheckpointInfo:
        """The checkpoint's header. Raises WeightsError, or ModelError for a pickle."""
        from studio_dcgan.checkpoint import find

        path = ref.path or self.path
        if is_pickle(path.name):
            raise refuse_pickle(str(path), f"file:{path}")
        return find(path)

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The weight file. Raises WeightsError if it is not a DCGAN's."""
        return [self.found(ref).path]

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> GeneratorNet:
        """Build the generator."""
        return self.found(ref).build(device, dtype)

    def step(self, model: GeneratorNet, states: Sequence[DcganState]) -> list[DcganState]:
        """Generate the next pictures of every state in one forward pass."""
        import torch

        todo = [state.x[len(state.pixels) : len(state.pixels) + CHUNK] for state in states]
        x = torch.cat([model.here(each) for each in todo]).to(next(model.parameters()).dtype)
        made = model.pixels(x).split([len(each) for each in todo])  # of (n, 64, 64, 3) each
        return [
            replace(state, position=state.position + 1, pixels=torch.cat([state.pixels, pixels]))
            for state, pixels in zip(states, made, strict=True)
        ]

    def batch_key(self, state: DcganState) -> Hashable:
        """Requests with the same number of pictures in the next step share it, which bounds the size of a step."""
        return min(len(state.x) - len(state.pixels), CHUNK)

    def facts(self, model: GeneratorNet, inputs: Any) -> dict[str, Any]:
        """The model's shape."""
        return {"model": {"latents": model.latent, "width": model.width, "classes": model.classes}}


def _class_of(model: GeneratorNet, name: str, rng: studio.Rng) -> int:
    """The index of a class; random for an empty name. Raises UnknownName, InputError."""
    if not name:
        return rng.python.randrange(max(len(model.names), 1))
    if not model.names:
        raise InputError("of", f"`of` is `{name}`, but the model has no classes", hint="leave it out")
    folded = {each.casefold(): index for index, each in enumerate(model.names)}
    if name.casefold().strip() not in folded:
        raise UnknownName("class of the model", name, model.names)
    return folded[name.casefold().strip()]


class DcganGenerator(_DcganBase):
    """Generate a small picture of a class with a DCGAN, in one step."""

    name = "dcgan"
    output = studio.Image

    class Inputs(studio.Inputs):
        """The inputs of `studio generate dcgan`."""

        of: str = studio.field("", help="class to draw, such as `banana`; empty draws a random one", max_length=200)
        truncation: float = _TRUNCATION
        model: str = _MODEL

    def start(self, model: GeneratorNet, inputs: Any, rng: studio.Rng) -> DcganState:
        """Sample the latents."""
        import torch

        from studio_dcgan.latents import truncated

        label = model.here(torch.tensor([_class_of(model, inputs.of, rng)]))
        z = model.here(truncated(1, model.latent, inputs.truncation, rng.torch))
        return DcganState(x=model.condition(z, label), pixels=torch.empty(0, *model.picture, dtype=torch.uint8))

    def finish(self, model: GeneratorNet, state: DcganState) -> studio.Image:
        """The picture."""
        return studio.Image.from_array(state.pixels[0].numpy())


class DcganWalk(_DcganBase):
    """Generate a video that interpolates between pictures of a DCGAN."""

    name = "dcgan-walk"
    output = studio.Video

    class Inputs(studio.Inputs):
        """The inputs of `studio generate dcgan-walk`."""

        of: list[str] = studio.field(
            default_factory=list, help="classes of the waypoints, one or more; by default random"
        )
        stops: int = studio.field(4, ge=2, le=64, help="number of waypoints; `of` repeats cyclically")
        frames: int = studio.field(72, ge=2, le=2000, help="number of frames")
        fps: float = studio.field(24.0, ge=1, le=60, help="frames per second")
        truncation: float = _TRUNCATION
        model: str = _MODEL

    def start(self, model: GeneratorNet, inputs: Any, rng: studio.Rng) -> DcganState:
        """Sample the latents of the waypoints, and interpolate between them."""
        import torch

        from studio_dcgan.latents import lerp, slerp, truncated

        names = inputs.of or [""]
        labels = torch.tensor([_class_of(model, names[stop % len(names)], rng) for stop in range(inputs.stops)])
        z = truncated(inputs.stops, model.latent, inputs.truncation, rng.torch)
        way = torch.linspace(0, inputs.stops - 1, inputs.frames)
        joined = model.condition(model.here(z), model.here(labels))
        x = torch.cat([model.here(slerp(z, way)), lerp(joined[:, model.latent :], model.here(way))], 1)
        return DcganState(
            steps=-(-inputs.frames // CHUNK), x=x, fps=inputs.fps,
            pixels=torch.empty(0, *model.picture, dtype=torch.uint8),
        )  # fmt: skip

    def finish(self, model: GeneratorNet, state: DcganState) -> studio.Video:
        """The frames as a video."""
        return studio.Video(state.pixels.numpy(), state.fps)

    def preview(self, model: GeneratorNet, state: DcganState) -> studio.Image | None:
        """The latest frame."""
        return studio.Image.from_array(state.pixels[-1].numpy()) if len(state.pixels) else None
