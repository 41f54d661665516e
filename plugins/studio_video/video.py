"""The generator `video`: text, or a picture, or a clip, to a clip, on the starter weights that ship with the plugin.

It declares what may be asked for, and says which of two ways makes it: `own` for the project's model, `stock` for a
folder in the layout of diffusers' video pipelines. Importing this loads no torch; `load` does.

Try it: ``studio video "a dog bouncing" -o dog.mp4``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from pydantic import ValidationInfo, field_validator, model_validator

import studio
from studio.devices.precision import fast_dtype
from studio.errors import WeightsError
from studio_diffusion import prompts, sizes
from studio_diffusion.image import STARTER as PICTURES
from studio_video import fit

if TYPE_CHECKING:
    from studio_video.latent import LatentVideo
    from studio_video.stock import StockVideo

    Model: TypeAlias = LatentVideo | StockVideo

WEIGHTS = Path(__file__).parent / "weights"
SHARED = ("tokenizer", "text_encoder", "vae")
SMALLEST, LARGEST, MULTIPLE, MOST_FRAMES = 64, 2048, 16, 1024


class VideoGenerator(studio.Generator):
    """Make a short video from a text, from a picture, or from a clip to go on with."""

    name = "video"
    version = "4"
    output = studio.Video
    max_batch: ClassVar[int] = 8

    class Inputs(studio.Inputs):
        """What `studio video` asks for."""

        prompt: str = studio.field(help="what to show and how it moves, in English", min_length=1, max_length=2000)
        negative: str = studio.field("", help="what to keep away from", max_length=2000, aliases=("negative_prompt",))
        fps: float = studio.field(12, ge=1, le=60, help="frames a second")
        size: str = studio.field(
            "128x128",
            help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}",
            aliases=("{width}x{height}",),
        )
        frames: int = studio.field(16, ge=1, le=MOST_FRAMES, help="how many frames to make", aliases=("num_frames",))
        image: studio.Image | None = studio.field(None, help="a picture to begin with; it is the first frame")
        to: studio.Image | None = studio.field(None, help="a picture to end with; it is the last frame")
        extend: studio.Video | None = studio.field(None, help="a clip to go on with; the frames are added to it")
        fit: str = studio.field(
            "letterbox", choices=fit.WAYS, help="what to do with a picture or clip of another aspect ratio"
        )
        loop: bool = studio.field(False, help="let the end meet the beginning")
        model: str = studio.model_field("a folder that `studio train video` wrote, or a pulled one")
        steps: int = studio.field(
            20, ge=1, le=1000, help="denoising steps; more are slower and finer", aliases=("num_inference_steps",)
        )
        guidance: float = studio.field(
            4.0,
            ge=1,
            le=30,
            help="how closely to follow the prompt; 1 is off and twice as fast",
            aliases=("guidance_scale",),
        )
        sampler: str = studio.field(
            "dpmpp-2m", choices=("dpmpp-2m", "euler"), help="how to go from one noise level to the next"
        )
        attention: str = studio.field(
            "full", choices=("full", "window", "factorised"),
            help="which patches see each other: all of the clip; by turns those near and those of some frames all over "
            "it; or by turns those of one frame and of one place",
        )  # fmt: skip

        @field_validator("prompt")
        @classmethod
        def _not_blank(cls, value: str) -> str:
            if not value.strip():
                raise ValueError("is empty: say what to show")
            return value

        @field_validator("prompt", "negative")
        @classmethod
        def _weights_are_allowed(cls, value: str, info: ValidationInfo) -> str:
            found = prompts.read(value)
            if value.strip() and not found.text and info.field_name == "prompt":
                raise ValueError("has brackets and tags only: say what to show")
            return value

        @field_validator("size")
        @classmethod
        def _parse_size(cls, value: str) -> str:
            return sizes.parse(value, MULTIPLE, SMALLEST, LARGEST)

        @field_validator("frames", mode="before")
        @classmethod
        def _not_endless(cls, value: Any, info: ValidationInfo) -> Any:
            count = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
            if isinstance(count, int) and count > MOST_FRAMES:
                size = info.data.get("size", "128x128")
                takes = _memory(count, *(int(side) for side in size.split("x")))
                raise ValueError(f"must be from 1 to {MOST_FRAMES}; that many frames of {size} would take {takes}")
            return value

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.extend and (self.image or self.to or self.loop):
                raise ValueError("`extend` goes on with a clip: leave out `image`, `to` and `loop`")
            if self.to and self.loop:
                raise ValueError("`loop` ends where it begins: leave out `to`, or `loop`")
            kept = bool(self.image) + bool(self.to)
            if self.frames <= max(kept, int(self.loop)):
                raise ValueError(f"`frames` is {self.frames}: with `image`, `to` or `loop` there must be more to make")
            return self

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels."""
            width, height = self.size.split("x")
            return int(width), int(height)

    def __init__(self, folder: Path = WEIGHTS, shared: Path = PICTURES) -> None:
        """Use the net of `folder`, where inputs name none, and text tower and VAE of the image model in `shared`."""
        self.folder, self.shared = folder, shared

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The safetensors of the net and of what it shares. Raises WeightsError if anything is missing."""
        folder = ref.path or self.folder
        if _is_stock(folder):
            return sorted(folder.rglob("*.safetensors"))
        for part in (folder / "config.json", *(self.shared / name for name in SHARED)):
            if not part.exists():
                reason = f"`{folder}` is not a video model: `{part}` is missing"
                hint = "train one with `studio train video`, and name it: `--model training/video/model`"
                raise WeightsError(part, reason, hint=hint)
        shared = [file for name in SHARED for file in (self.shared / name).glob("*.safetensors")]
        return [*sorted(folder.glob("*.safetensors")), *sorted(shared)]

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware multiplies it, else float32."""
        return fast_dtype(device)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Model:
        """Build text tower, net and VAE, or the stock pipeline."""
        import torch

        from studio_video.latent import LatentVideo
        from studio_video.stock import StockVideo

        folder = ref.path or self.folder
        if _is_stock(folder):
            return StockVideo(folder, device, getattr(torch, dtype))
        return LatentVideo(folder, self.shared, device, getattr(torch, dtype))

    def start(self, model: Model, inputs: Any, rng: studio.Rng) -> studio.State:
        """Encode the texts and what is given, and draw the noise."""
        return _way(model).start(model, inputs, rng)

    def step(self, model: Model, states: Sequence[Any]) -> Sequence[studio.State]:
        """One denoising step for all states."""
        return _way(model).step(model, states)

    def finish(self, model: Model, state: Any) -> studio.Video:
        """Decode the latents."""
        return _way(model).finish(model, state)

    def preview(self, model: Model, state: Any) -> studio.Image | None:
        """The frame half-way, as the model now takes it to be."""
        return _way(model).preview(model, state)

    def batch_key(self, state: Any) -> Hashable:
        """What the states of this model say may share a step."""
        return state.key

    def facts(self, model: Model, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        return _way(model).facts(model, inputs)


def _is_stock(folder: Path) -> bool:
    return (folder / "model_index.json").exists()


def _way(model: Model) -> Any:
    """The module that knows how: `own`, or `stock` for a folder in diffusers' layout."""
    from studio_video import own, stock

    return stock if isinstance(model, stock.StockVideo) else own


def _memory(frames: int, width: int, height: int) -> str:
    """What the pixels of so many frames take, in words."""
    return f"{frames * width * height * 3 / 2**30:.1f} GiB for their pixels alone"
