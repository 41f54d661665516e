"""The generator `image`: text-to-image by latent diffusion, by default with the starter weights of the plugin.

Also image-to-image (`image`, `strength`), inpainting (`mask`, `box`) and outpainting (`extend`); see edit.py. Importing
this loads no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationInfo, field_validator, model_validator

import studio
from studio.devices.precision import fast_dtype
from studio.diffusion.layout import tensors_of
from studio.errors import InputError, WeightsError
from studio_diffusion import edit, prompts, sizes, step_cache, vocabulary
from studio_diffusion.chunks import notices as prompt_notices

if TYPE_CHECKING:
    from torch import Tensor

    from studio_diffusion.latent import LatentDiffusion

STARTER = Path(__file__).parent / "weights" / "starter"
COMPONENTS = ("model_index.json", "tokenizer", "text_encoder", "unet", "vae", "scheduler")
SMALLEST, LARGEST, MULTIPLE = 64, 1024, 32
STEPS, GUIDANCE = 20, 5.0
FAST_STEPS, FAST_GUIDANCE = 4, 4.0  # the best of those tried (docs/log.md); few steps need less guidance


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageState(studio.State):
    """The state of a picture being denoised.

    Tensors are on the model's device, except `pixels` and `mask`.

    Attributes:
        x: (C, H, W) float32 latents.
        x0_before: the x_0 predicted at the previous step, or None at the first.
        text, negative: (T, W) text encoder states of the prompt and of the negative prompt.
        levels: noise levels, `steps + 1` numbers falling to 0.
        skips: whether late steps may reuse `x0_before` (step cache).
        kept_x0, kept_noise: (C, H, W) latents of the original picture, and their noise, for inpainting; else None, as
            are the next three.
        cells: (H, W) float32, 1 for latents to repaint, 0 for those to keep.
        pixels, mask: the original, uint8 (8H, 8W, 3), and float32 (8H, 8W) from 0, keep, to 1, repaint.
    """

    x: Tensor
    x0_before: Tensor | None
    text: Tensor
    negative: Tensor
    levels: tuple[float, ...]
    guidance: float
    rescale: float
    sampler: str
    skips: bool = False
    kept_x0: Tensor | None = None
    kept_noise: Tensor | None = None
    cells: Tensor | None = None
    pixels: Tensor | None = None
    mask: Tensor | None = None


class ImageGenerator(studio.Generator):
    """Make a picture from a prompt by latent diffusion."""

    name = "image"
    output = studio.Image
    version = "5"
    max_batch: ClassVar[int] = 8
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """The inputs of `studio image`."""

        prompt: str = studio.field(
            help="prompt, in English or Chinese; (word:1.3) weights a word, \\( is a literal bracket",
            min_length=1,
            max_length=2000,
        )
        negative: str = studio.field("", help="negative prompt", max_length=2000, aliases=("negative_prompt",))
        model: str = studio.model_field("a folder from `studio train image`, or a pulled model")
        steps: int = studio.field(
            STEPS,
            ge=1,
            le=1000,
            help="denoising steps; more are slower, with more detail",
            aliases=("num_inference_steps",),
        )
        guidance: float = studio.field(
            GUIDANCE,
            ge=1,
            le=30,
            help="guidance scale: how closely to follow the prompt; 1 is off and twice as fast",
            aliases=("guidance_scale",),
        )
        rescale: float = studio.field(
            0.0,
            ge=0,
            le=1,
            help="guidance rescale, against harsh colours at high guidance; try 0.7",
        )
        size: str = studio.field(
            "128x128",
            help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}",
            aliases=("{width}x{height}",),
        )
        sampler: str = studio.field("dpmpp-2m", choices=("dpmpp-2m", "euler"), help="sampler (ODE solver)")
        cache: bool = studio.field(
            False,
            help="step cache: reuse the model output on every other late step; faster, slightly different images",
        )
        fast: bool = studio.field(
            False, help=f"{FAST_STEPS} steps at guidance {FAST_GUIDANCE:g}: a fifth of the work, less detail"
        )
        image: studio.Image | None = studio.field(None, help="initial picture, for image-to-image")
        strength: float | None = studio.field(
            None, gt=0, le=1, help="how much of `image` to change; 1 starts from pure noise. Default: 0.8, or 1 for "
            "inpainting and outpainting",
        )  # fmt: skip
        mask: studio.Image | None = studio.field(
            None, help="inpainting mask of the size of `image`: white is repainted, black is kept exactly"
        )
        box: str = studio.field("", help="X,Y,WIDTH,HEIGHT: a rectangle of `image` to repaint, instead of `mask`")
        extend: str = studio.field(
            "", help="LEFT,TOP,RIGHT,BOTTOM: pixels to add around `image` (outpainting), after fitting it to `size`"
        )
        fit: str = studio.field(
            "crop",
            choices=edit.FITS,
            help="how to fit `image` to a `size` of another shape: crop it, or pad it with white",
        )

        @field_validator("prompt")
        @classmethod
        def _not_blank(cls, value: str) -> str:
            if not value.strip():
                raise ValueError("is empty; describe what to draw")
            return value

        @field_validator("prompt", "negative")
        @classmethod
        def _weights_are_allowed(cls, value: str, info: ValidationInfo) -> str:
            found = prompts.read(value)
            if value.strip() and not found.text and info.field_name == "prompt":
                raise ValueError("has brackets and tags only; describe what to draw")
            return value

        @field_validator("size")
        @classmethod
        def _parse_size(cls, value: str) -> str:
            return sizes.parse(value, MULTIPLE, SMALLEST, LARGEST)

        @field_validator("box", "extend")
        @classmethod
        def _four_numbers(cls, value: str, info: ValidationInfo) -> str:
            if value and info.field_name == "box":
                edit.numbers(value, "X,Y,WIDTH,HEIGHT")
            elif value and not any(edit.numbers(value, "LEFT,TOP,RIGHT,BOTTOM")):
                raise ValueError("adds nothing; give at least one side 1 pixel or more, or leave it out")
            return value

        @model_validator(mode="after")
        def _parts_of_a_picture(self) -> Self:
            parts = [name for name in ("strength", "mask", "box", "extend") if getattr(self, name) not in (None, "")]
            if parts and self.image is None:
                raise ValueError(f"`{parts[0]}` needs a picture: give `image` too")
            if self.mask is not None and self.box:
                raise ValueError("`mask` and `box` exclude each other: give one of them")
            width, height = self.canvas
            if any(side % MULTIPLE or side > LARGEST for side in (width, height)):
                raise ValueError(f"`extend` makes the picture {width}x{height}, but both must be multiples of "
                                 f"{MULTIPLE} up to {LARGEST}")  # fmt: skip
            return self

        @model_validator(mode="after")
        def _fast_chooses(self) -> Self:
            for name, usual in (("steps", STEPS), ("guidance", GUIDANCE)):
                if self.fast and getattr(self, name) != usual:
                    raise ValueError(f"`fast` chooses `{name}` itself: leave out one of the two")
            return self

        @property
        def steps_and_guidance(self) -> tuple[int, float]:
            """The number of steps from pure noise, and the guidance scale."""
            return (FAST_STEPS, FAST_GUIDANCE) if self.fast else (self.steps, self.guidance)

        @property
        def steps_taken(self) -> int:
            """The number of steps that run: a strength below 1 takes a fraction of them."""
            return max(1, round(self.steps_and_guidance[0] * self.effective_strength))

        @property
        def canvas(self) -> tuple[int, int]:
            """Width and height of the output in pixels."""
            left, top, right, bottom = edit.numbers(self.extend or "0,0,0,0", "LEFT,TOP,RIGHT,BOTTOM")
            width, height = self.sides
            return width + left + right, height + top + bottom

        @property
        def effective_strength(self) -> float:
            """The strength, or its default."""
            if self.strength is not None:
                return self.strength
            return 0.8 if self.image and not (self.mask or self.box or self.extend) else 1.0

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels."""
            width, height = self.size.split("x")
            return int(width), int(height)

    def __init__(self, folder: Path = STARTER) -> None:
        """`folder`, in the layout of diffusers' `StableDiffusionPipeline`, is the default model."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The folder's safetensors and configs. Raises WeightsError if a component is missing."""
        folder = ref.path or self.folder
        for part in COMPONENTS:
            if not (folder / part).exists():
                reason = f"`{folder}` is not an image model: it has no `{part}`"
                raise WeightsError(folder / part, reason, hint="use a folder from `studio train image`")
        nets = [file for part in ("text_encoder", "unet", "vae") for file in tensors_of(folder / part)]
        return [*nets, *sorted(folder.glob("*/*config.json"))]  # configs affect the picture too

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware supports it, else float32."""
        return fast_dtype(device)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> LatentDiffusion:
        """Load the text encoder, the U-Net and the VAE."""
        import torch

        from studio_diffusion.latent import LatentDiffusion

        return LatentDiffusion(ref.path or self.folder, device, getattr(torch, dtype))

    def start(self, model: LatentDiffusion, inputs: Any, rng: studio.Rng) -> ImageState:
        """Encode the prompts and sample the noise."""
        import torch

        from studio_diffusion.samplers import noise_levels

        (text, cut), (negative, more) = model.states(inputs.prompt), model.states(inputs.negative)
        most = max(len(text), len(negative))
        text, negative = (torch.cat([each, model.empty(most - len(each))]) for each in (text, negative))
        notices = (
            *prompt_notices(inputs.prompt, cut, "prompt", model.tokenizer),
            *prompt_notices(inputs.negative, more, "negative prompt", model.tokenizer),
            *vocabulary.notices(model.vocabulary, prompts.read(inputs.prompt).text, model.nearest),
        )
        width, height = inputs.canvas
        if width % model.factor or height % model.factor:
            raise InputError("size", f"`size` is {width}x{height}; this model needs multiples of {model.factor}")
        x = model.here(torch.randn(model.latent_shape(width, height), generator=rng.torch))
        levels = noise_levels(inputs.steps_taken, model.shift, inputs.effective_strength)
        kept: dict[str, Any] = {}
        if inputs.image is not None:
            canvas = edit.Canvas.of(inputs.image, inputs.sides, fit=inputs.fit, mask=inputs.mask, box=inputs.box,
                                    extend=inputs.extend)  # fmt: skip
            notices += canvas.notices
            x0 = model.latents(torch.from_numpy(canvas.pixels.copy()))
            if canvas.mask is not None:
                cells = model.here(torch.from_numpy(canvas.cells(model.factor)))
                kept = {"kept_x0": x0, "kept_noise": x, "cells": cells, "mask": torch.from_numpy(canvas.mask.copy()),
                        "pixels": torch.from_numpy(canvas.pixels.copy())}  # fmt: skip
            x = torch.lerp(x0, x, levels[0])
        return ImageState(
            steps=len(levels) - 1, notices=notices, x=x, x0_before=None, text=text, negative=negative, levels=levels,
            guidance=inputs.steps_and_guidance[1], rescale=inputs.rescale, sampler=inputs.sampler,
            skips=inputs.cache, **kept,
        )  # fmt: skip

    def step(self, model: LatentDiffusion, states: Sequence[ImageState]) -> list[ImageState]:
        """One batched denoising step."""
        from studio_diffusion.latent import LatentRow

        rows = [
            LatentRow(
                known=_cached_x0(a), x=a.x, x0_before=a.x0_before, text=a.text, negative=a.negative,
                guidance=a.guidance, rescale=a.rescale, sampler=a.sampler, s=a.levels[a.position],
                s_next=a.levels[a.position + 1], s_before=a.levels[a.position - 1] if a.position else 0.0,
            )
            for a in states
        ]  # fmt: skip
        return [_next_state(model, a, x, x0) for a, (x, x0) in zip(states, model.step(rows), strict=True)]

    def finish(self, model: LatentDiffusion, state: ImageState) -> studio.Image:
        """Decode the latents."""
        return self.finish_many(model, [state])[0]

    def finish_many(self, model: LatentDiffusion, states: Sequence[ImageState]) -> list[studio.Image]:
        """Decode the latents of all states in one batch."""
        import torch

        made = model.decode(torch.stack([model.here(a.x) for a in states])).numpy()
        return [studio.Image.from_array(_composite(a, each)) for a, each in zip(states, made, strict=True)]

    def preview(self, model: LatentDiffusion, state: ImageState) -> studio.Image | None:
        """Decode the predicted x_0."""
        if state.x0_before is None:
            return None
        return studio.Image.from_array(_composite(state, model.decode(state.x0_before[None])[0].numpy()))

    def batch_key(self, state: ImageState) -> Hashable:
        """Pictures of one size, with prompts of the same number of chunks, share a step."""
        return (*state.x.shape, len(state.text))

    def facts(self, model: LatentDiffusion, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        steps = inputs.steps_taken
        return {
            "noise_schedule": {
                "kind": "rectified flow",
                "shift": model.shift,
                "steps": inputs.steps_taken,
                "begin": inputs.effective_strength,
            },
            "steps": inputs.steps_and_guidance[0],
            "guidance": inputs.steps_and_guidance[1],
            "size": f"{inputs.canvas[0]}x{inputs.canvas[1]}",
            **({"strength": inputs.effective_strength} if inputs.image is not None else {}),
            "sampler": inputs.sampler,
            "steps_asked": sum(not inputs.cache or step_cache.runs_model(i, steps) for i in range(steps)),
        }


def _cached_x0(a: ImageState) -> Tensor | None:
    """The x_0 of the previous step where this step reuses it instead of running the U-Net; else None."""
    return a.x0_before if a.skips and not step_cache.runs_model(a.position, a.steps) else None


def _next_state(model: LatentDiffusion, a: ImageState, x: Tensor, x0: Tensor) -> ImageState:
    """The state one step later; kept regions are reset to the original at the next noise level."""
    import torch

    if a.kept_x0 is not None:
        assert a.cells is not None
        assert a.kept_noise is not None
        kept, noise, cells = map(model.here, (a.kept_x0, a.kept_noise, a.cells))
        x = torch.lerp(torch.lerp(kept, noise, a.levels[a.position + 1]), x, cells)
        x0 = torch.lerp(kept, x0, cells)
    return replace(a, position=a.position + 1, x=x, x0_before=x0)


def _composite(a: ImageState, made: Any) -> Any:
    """A decoded picture, uint8 (H, W, 3), with the original pixels in the kept regions."""
    if a.pixels is None or a.mask is None:
        return made
    return edit.composite(made, a.pixels.cpu().numpy(), a.mask.cpu().numpy())
