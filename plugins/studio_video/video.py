"""The generator `video`: text-to-video, image-to-video and clip extension, by default with the plugin's starter
weights.

It declares the inputs and dispatches by model: to starter.py for Studio's own models, to stock.py for folders in the
layout of diffusers' video pipelines. Importing this loads no torch; `load` does.

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
    """Make a short video from a prompt, from pictures, or by extending a clip."""

    name = "video"
    version = "4"
    output = studio.Video
    max_batch: ClassVar[int] = 8

    class Inputs(studio.Inputs):
        """The inputs of `studio video`."""

        prompt: str = studio.field(help="prompt, in English: the thing and its motion", min_length=1, max_length=2000)
        negative: str = studio.field("", help="negative prompt", max_length=2000, aliases=("negative_prompt",))
        fps: float = studio.field(12, ge=1, le=60, help="frames per second")
        size: str = studio.field(
            "128x128",
            help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}",
            aliases=("{width}x{height}",),
        )
        frames: int = studio.field(16, ge=1, le=MOST_FRAMES, help="number of new frames", aliases=("num_frames",))
        image: studio.Image | None = studio.field(None, help="first frame (image-to-video)")
        to: studio.Image | None = studio.field(None, help="last frame")
        extend: studio.Video | None = studio.field(None, help="clip to extend; the new frames are appended")
        fit: str = studio.field(
            "letterbox", choices=fit.WAYS, help="how to fit pictures and clips of another aspect ratio: pad or crop"
        )
        loop: bool = studio.field(False, help="make a seamless loop")
        model: str = studio.model_field("a folder from `studio train video`, or a pulled model")
        steps: int = studio.field(
            20,
            ge=1,
            le=1000,
            help="denoising steps; more are slower, with more detail",
            aliases=("num_inference_steps",),
        )
        guidance: float = studio.field(
            4.0,
            ge=1,
            le=30,
            help="guidance scale: how closely to follow the prompt; 1 is off and twice as fast",
            aliases=("guidance_scale",),
        )
        sampler: str = studio.field("dpmpp-2m", choices=("dpmpp-2m", "euler"), help="sampler (ODE solver)")
        attention: str = studio.field(
            "full", choices=("full", "window", "factorised"),
            help="attention pattern: full; alternating local windows and groups of frames; or alternating spatial and "
            "temporal layers",
        )  # fmt: skip

        @field_validator("prompt")
        @classmethod
        def _not_blank(cls, value: str) -> str:
            if not value.strip():
                raise ValueError("is empty; describe what to show")
            return value

        @field_validator("prompt", "negative")
        @classmethod
        def _weights_are_allowed(cls, value: str, info: ValidationInfo) -> str:
            found = prompts.read(value)
            if value.strip() and not found.text and info.field_name == "prompt":
                raise ValueError("has brackets and tags only; describe what to show")
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
                raise ValueError(f"must be from 1 to {MOST_FRAMES}; {count:,} frames of {size} would need {takes}")
            return value

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.extend and (self.image or self.to or self.loop):
                raise ValueError("`extend` excludes `image`, `to` and `loop`: leave them out")
            if self.to and self.loop:
                raise ValueError("`to` and `loop` exclude each other: leave out one of them")
            kept = bool(self.image) + bool(self.to)
            if self.frames <= max(kept, int(self.loop)):
                raise ValueError(f"`frames` is {self.frames}; with `image`, `to` or `loop` it must be larger")
            return self

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels."""
            width, height = self.size.split("x")
            return int(width), int(height)

    def __init__(self, folder: Path = WEIGHTS, shared: Path = PICTURES) -> None:
        """`folder` is the default model; `shared` is the image model whose text encoder and VAE it uses."""
        self.folder, self.shared = folder, shared

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The safetensors of the network and of the shared components. Raises WeightsError if anything is missing."""
        folder = ref.path or self.folder
        if _is_stock(folder):
            return sorted(folder.rglob("*.safetensors"))
        for part in (folder / "config.json", *(self.shared / name for name in SHARED)):
            if not part.exists():
                reason = f"`{folder}` is not a video model: `{part}` is missing"
                hint = "train one with `studio train video`, then use `--model training/video/model`"
                raise WeightsError(part, reason, hint=hint)
        shared = [file for name in SHARED for file in (self.shared / name).glob("*.safetensors")]
        return [*sorted(folder.glob("*.safetensors")), *sorted(shared)]

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware supports it, else float32."""
        return fast_dtype(device)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Model:
        """Load the text encoder, network and VAE, or the pipeline of diffusers."""
        import torch

        from studio_video.latent import LatentVideo
        from studio_video.stock import StockVideo

        folder = ref.path or self.folder
        if _is_stock(folder):
            return StockVideo(folder, device, getattr(torch, dtype))
        return LatentVideo(folder, self.shared, device, getattr(torch, dtype))

    def start(self, model: Model, inputs: Any, rng: studio.Rng) -> studio.State:
        """Encode the prompts and the conditioning frames, and sample the noise."""
        return _backend(model).start(model, inputs, rng)

    def step(self, model: Model, states: Sequence[Any]) -> Sequence[studio.State]:
        """One denoising step for all states."""
        return _backend(model).step(model, states)

    def finish(self, model: Model, state: Any) -> studio.Video:
        """Decode the latents."""
        return _backend(model).finish(model, state)

    def preview(self, model: Model, state: Any) -> studio.Image | None:
        """The middle frame of the predicted x_0."""
        return _backend(model).preview(model, state)

    def batch_key(self, state: Any) -> Hashable:
        """The state's own key."""
        return state.key

    def facts(self, model: Model, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        return _backend(model).facts(model, inputs)


def _is_stock(folder: Path) -> bool:
    return (folder / "model_index.json").exists()


def _backend(model: Model) -> Any:
    """The module for this model: `starter`, or `stock` for a pipeline of diffusers."""
    from studio_video import starter, stock

    return stock if isinstance(model, stock.StockVideo) else starter


def _memory(frames: int, width: int, height: int) -> str:
    """The memory for the pixels of these frames, in words."""
    return f"{frames * width * height * 3 / 2**30:.1f} GiB for their pixels"
