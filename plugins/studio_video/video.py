"""The generator `video`: text-to-video, image-to-video and clip extension, by default with the plugin's starter
weights.

It declares the inputs and dispatches by model: to starter.py for Studio's own models, to stock.py for pipelines of
diffusers. Importing this loads no torch; `load` does.

Try it: ``studio video "a dog bouncing" -o dog.mp4``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationInfo, field_validator, model_validator

import studio
from studio.diffusion.layout import is_pipeline
from studio.errors import WeightsError
from studio_diffusion import sizes
from studio_diffusion.image import STARTER as PICTURES
from studio_diffusion.inputs import SAMPLERS, checked_prompt, checked_sampler
from studio_video import fit

WEIGHTS = Path(__file__).parent / "weights"
SHARED = ("tokenizer", "text_encoder", "vae")
SMALLEST, LARGEST, MULTIPLE, MOST_FRAMES = 64, 2048, 16, 1024
FPS, SIZE, FRAMES, STEPS, GUIDANCE = 12.0, "128x128", 16, 20, 4.0  # of the starter


class VideoGenerator(studio.PipelineGenerator):
    """Generate a short video from a prompt, from pictures, or by extending a clip."""

    name = "video"
    version = "4"
    output = studio.Video
    max_batch: ClassVar[int] = 8

    class Inputs(studio.Inputs):
        """The inputs of `studio video`."""

        prompt: str = studio.field(help="prompt, in English: the object and its motion", min_length=1, max_length=2000)
        negative: str = studio.field("", help="negative prompt", max_length=2000, aliases=("negative_prompt",))
        model: str = studio.model_field(
            "a folder from `studio train video`, a pulled model, or a video pipeline of diffusers (with its own "
            "defaults)"
        )
        base: str = studio.addition_field(
            "base", help="for a `model` in one file, a folder of diffusers with what the file lacks", many=False
        )
        lora: list[str] = studio.addition_field(
            "lora", help="a LoRA for `model`: a file, a folder or a pulled model, with `:WEIGHT` if it is not 1"
        )
        fps: float | None = studio.field(None, ge=1, le=60, help="frames per second. Default: 12")
        size: str = studio.field(
            "",
            help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}. Default: "
            "128x128",
            aliases=("{width}x{height}",),
        )
        frames: int | None = studio.field(
            None, ge=1, le=MOST_FRAMES, help="number of new frames. Default: 16", aliases=("num_frames",)
        )
        image: studio.Image | None = studio.field(None, help="first frame (image-to-video)")
        to: studio.Image | None = studio.field(None, help="last frame")
        extend: studio.Video | None = studio.field(None, help="clip to extend; the new frames are appended")
        fit: str = studio.field(
            "letterbox", choices=fit.WAYS, help="how to fit pictures and clips of another aspect ratio: pad or crop"
        )
        loop: bool = studio.field(False, help="make a seamless loop")
        steps: int | None = studio.field(
            None,
            ge=1,
            le=1000,
            help="denoising steps; more are slower, with more detail. Default: 20",
            aliases=("num_inference_steps",),
        )
        guidance: float | None = studio.field(
            None,
            ge=0,
            le=30,
            help="guidance scale: how closely to follow the prompt; 1 is off and twice as fast. Default: 4",
            aliases=("guidance_scale",),
        )
        sampler: str = studio.field("", help=f"sampler (ODE solver): {' or '.join(SAMPLERS)}; with `model` any that "
                                    f"fits it. Default: {SAMPLERS[0]}")  # fmt: skip
        attention: str = studio.field(
            "full", choices=("full", "window", "factorised"),
            help="attention pattern: full; alternating local windows and groups of frames; or alternating spatial and "
            "temporal layers",
        )  # fmt: skip

        @field_validator("prompt", "negative")
        @classmethod
        def _check_prompt(cls, value: str, info: ValidationInfo) -> str:
            return checked_prompt(value, info, "show")

        @field_validator("size")
        @classmethod
        def _parse_size(cls, value: str, info: ValidationInfo) -> str:
            multiple = 1 if info.data.get("model") else MULTIPLE
            return sizes.parse(value, multiple, SMALLEST, LARGEST) if value else ""

        @field_validator("sampler")
        @classmethod
        def _check_sampler(cls, value: str, info: ValidationInfo) -> str:
            return checked_sampler(value, info)

        @field_validator("frames", mode="before")
        @classmethod
        def _not_endless(cls, value: Any, info: ValidationInfo) -> Any:
            count = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
            if isinstance(count, int) and count > MOST_FRAMES:
                size = info.data.get("size") or SIZE
                takes = _memory(count, *(int(side) for side in size.split("x")))
                raise ValueError(f"must be from 1 to {MOST_FRAMES}; {count:,} frames of {size} would need {takes}")
            return value

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.lora and not self.model:
                raise ValueError("`lora` needs a model of diffusers: give `model` too")
            if self.extend and (self.image or self.to or self.loop):
                raise ValueError("`extend` excludes `image`, `to` and `loop`: leave them out")
            if self.to and self.loop:
                raise ValueError("`to` and `loop` exclude each other: omit one of them")
            kept = bool(self.image) + bool(self.to)
            if (self.frames or FRAMES) <= max(kept, int(self.loop)):
                raise ValueError(f"`frames` is {self.frames}; with `image`, `to` or `loop` it must be larger")
            return self

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels, the starter's if none are given."""
            width, height = (self.size or SIZE).split("x")
            return int(width), int(height)

        def of_the_starter(self) -> Self:
            """The inputs, with the starter's defaults for missing ones."""
            fps = FPS if self.extend is None else self.extend.fps
            usual = {"fps": fps, "size": SIZE, "frames": FRAMES, "steps": STEPS, "guidance": GUIDANCE,
                     "sampler": SAMPLERS[0]}  # fmt: skip
            return self.model_copy(update={name: value for name, value in usual.items()
                                           if getattr(self, name) in (None, "")})  # fmt: skip

    def __init__(self, folder: Path = WEIGHTS, shared: Path = PICTURES) -> None:
        """`folder` is the default model; `shared` is the image model whose text encoder and VAE it uses."""
        self.folder, self.shared = folder, shared

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The safetensors of the network and of the shared components. Raises WeightsError if anything is missing."""
        folder = self._folder(ref)
        if is_pipeline(folder):
            return super().weights(ref)
        for part in (folder / "config.json", *(self.shared / name for name in SHARED)):
            if not part.exists():
                reason = f"`{folder}` is not a video model: `{part}` is missing"
                hint = "train one with `studio train video`, then use `--model training/video/model`"
                raise WeightsError(part, reason, hint=hint)
        shared = [file for name in SHARED for file in (self.shared / name).glob("*.safetensors")]
        return [*sorted(folder.glob("*.safetensors")), *sorted(shared)]

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Any:
        """Load the text encoder, network and VAE, or the pipeline of diffusers."""
        import torch

        from studio_video.latent import LatentVideo

        folder = self._folder(ref)
        if is_pipeline(folder):
            return super().load(ref, device, dtype)
        if ref.additions:
            raise WeightsError(folder, f"`{folder}` is a model of Studio, which takes no `{ref.additions[0].kind}`",
                               hint=f"leave out `{ref.additions[0].kind}`")  # fmt: skip
        return LatentVideo(folder, self.shared, device, getattr(torch, dtype))

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Any:
        """Encode the prompts and the conditioning frames, and sample the noise."""
        return _backend(model).start(model, _resolved(model, inputs), rng)

    def step(self, model: Any, states: Sequence[Any]) -> Sequence[Any]:
        """One denoising step for all states."""
        return _backend(model).step(model, states)

    def finish_many(self, model: Any, states: Sequence[Any]) -> list[Any]:
        """Decode the latents."""
        return _backend(model).finish_many(model, states)

    def preview(self, model: Any, state: Any) -> studio.Image | None:
        """The middle frame of the predicted x_0."""
        return _backend(model).preview(model, state)

    def batch_key(self, state: Any) -> Hashable:
        """The state's own key."""
        return state.key

    def facts(self, model: Any, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        return _backend(model).facts(model, _resolved(model, inputs))


def _backend(model: Any) -> Any:
    """The module for this model: `starter`, or `stock` for a pipeline of diffusers."""
    from studio.diffusion.stepping import PipelineModel
    from studio_video import starter, stock

    return stock if isinstance(model, PipelineModel) else starter


def _resolved(model: Any, inputs: Any) -> Any:
    from studio.diffusion.stepping import PipelineModel

    return inputs if isinstance(model, PipelineModel) else inputs.of_the_starter()


def _memory(frames: int, width: int, height: int) -> str:
    """The memory for the pixels of these frames, in words."""
    return f"{frames * width * height * 3 / 2**30:.1f} GiB for their pixels"
