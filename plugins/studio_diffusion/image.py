"""The generator `image`: text to picture by latent diffusion, on the starter weights that ship with the plugin.

From a picture too: changed as a whole (`image`, `strength`), in part (`mask`, `box`) or beyond its sides (`extend`);
see edit.py. Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationInfo, field_validator, model_validator

import studio
from studio.devices.precision import fast_dtype
from studio.errors import InputError, WeightsError
from studio_diffusion import edit, prompts, sizes, skipping, vocabulary
from studio_diffusion.chunks import notices as told
from studio_diffusion.layout import tensors_of

if TYPE_CHECKING:
    from torch import Tensor

    from studio_diffusion.latent import LatentDiffusion

STARTER = Path(__file__).parent / "weights" / "starter"
PARTS = ("model_index.json", "tokenizer", "text_encoder", "unet", "vae", "scheduler")
SMALLEST, LARGEST, MULTIPLE = 64, 1024, 32
STEPS, GUIDANCE = 20, 5.0
FAST_STEPS, FAST_GUIDANCE = 4, 4.0  # of those tried, see docs/log.md; few steps want less guidance


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoising(studio.State):
    """Latents on their way from noise to picture.

    Tensors are on the model's device, but for `pixels` and `mask`.

    Attributes:
        x: (C, H, W) float32 latents.
        x0_before: the clean latents as seen at the step before, or None at the first.
        text, negative: (T, W) token states of the prompt and of what to keep away from.
        levels: noise levels, `steps + 1` numbers falling to 0.
        skips: whether later steps may take `x0_before` for what the net would say.
        kept_x0, kept_noise: (C, H, W) latents of the picture that parts are kept of, and the noise that goes with
            them; None where nothing is kept, and so the next three.
        cells: (H, W) float32, 1 for latents that are drawn anew, 0 for those kept.
        pixels, mask: that picture, uint8 (8H, 8W, 3), and float32 (8H, 8W) from 0, kept, to 1, drawn anew.
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
    """Make a picture from a text, by latent diffusion."""

    name = "image"
    output = studio.Image
    version = "5"
    max_batch: ClassVar[int] = 8
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """What `studio image` asks for."""

        prompt: str = studio.field(
            help="what to draw, in English or Chinese; (word:1.3) gives it more weight, \\( draws a bracket",
            min_length=1,
            max_length=2000,
        )
        negative: str = studio.field("", help="what to keep away from", max_length=2000, aliases=("negative_prompt",))
        model: str = studio.model_field("a folder that `studio train image` wrote, or a pulled one")
        steps: int = studio.field(
            STEPS, ge=1, le=1000, help="denoising steps; more are slower and finer", aliases=("num_inference_steps",)
        )
        guidance: float = studio.field(
            GUIDANCE,
            ge=1,
            le=30,
            help="how closely to follow the prompt; 1 is off and twice as fast",
            aliases=("guidance_scale",),
        )
        rescale: float = studio.field(
            0.0, ge=0, le=1, help="how far to take back the contrast that guidance adds; 0.7 where colours are harsh"
        )
        size: str = studio.field(
            "128x128",
            help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}",
            aliases=("{width}x{height}",),
        )
        sampler: str = studio.field(
            "dpmpp-2m", choices=("dpmpp-2m", "euler"), help="how to go from one noise level to the next"
        )
        cache: bool = studio.field(
            False,
            help="ask the net only at every second of the later steps: faster, slightly other pictures",
        )
        fast: bool = studio.field(
            False, help=f"{FAST_STEPS} steps at guidance {FAST_GUIDANCE:g}: a fifth of the work, coarser pictures"
        )
        image: studio.Image | None = studio.field(None, help="a picture to begin with")
        strength: float | None = studio.field(
            None, gt=0, le=1, help="how much of `image` to change; 1 begins with pure noise. By default 0.8, or 1 "
            "where a part of it is drawn anew",
        )  # fmt: skip
        mask: studio.Image | None = studio.field(
            None, help="as large as `image`: white is drawn anew, black is kept to the last bit"
        )
        box: str = studio.field("", help="X,Y,WIDTH,HEIGHT in pixels of `image`, drawn anew in place of a `mask`")
        extend: str = studio.field(
            "", help="LEFT,TOP,RIGHT,BOTTOM pixels to draw beyond the sides of `image`; it is brought to `size` first"
        )
        fit: str = studio.field(
            "crop", choices=edit.FITS, help="how `image` is brought to a `size` of another shape: cut, or on white"
        )

        @field_validator("prompt")
        @classmethod
        def _not_blank(cls, value: str) -> str:
            if not value.strip():
                raise ValueError("is empty: say what to draw")
            return value

        @field_validator("prompt", "negative")
        @classmethod
        def _weights_are_allowed(cls, value: str, info: ValidationInfo) -> str:
            found = prompts.read(value)
            if value.strip() and not found.text and info.field_name == "prompt":
                raise ValueError("has brackets and tags only: say what to draw")
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
                raise ValueError("adds nothing: give one side at least 1 pixel, or leave it out")
            return value

        @model_validator(mode="after")
        def _parts_of_a_picture(self) -> Self:
            parts = [name for name in ("strength", "mask", "box", "extend") if getattr(self, name) not in (None, "")]
            if parts and self.image is None:
                raise ValueError(f"`{parts[0]}` says what to do with a picture: give `image` too")
            if self.mask is not None and self.box:
                raise ValueError("`mask` and `box` both say what is drawn anew: give one of them")
            width, height = self.canvas
            if any(side % MULTIPLE or side > LARGEST for side in (width, height)):
                raise ValueError(f"`extend` makes the picture {width}x{height}, but both must be multiples of "
                                 f"{MULTIPLE} up to {LARGEST}")  # fmt: skip
            return self

        @model_validator(mode="after")
        def _fast_chooses(self) -> Self:
            for name, usual in (("steps", STEPS), ("guidance", GUIDANCE)):
                if self.fast and getattr(self, name) != usual:
                    raise ValueError(f"`fast` chooses `{name}` itself: leave out one of them")
            return self

        @property
        def walk(self) -> tuple[int, float]:
            """How many steps a whole way from noise to picture has, and the guidance."""
            return (FAST_STEPS, FAST_GUIDANCE) if self.fast else (self.steps, self.guidance)

        @property
        def taken(self) -> int:
            """How many steps are taken: a picture that is changed a little needs a part of the way."""
            return max(1, round(self.walk[0] * self.change))

        @property
        def canvas(self) -> tuple[int, int]:
            """Width and height of the result in pixels."""
            left, top, right, bottom = edit.numbers(self.extend or "0,0,0,0", "LEFT,TOP,RIGHT,BOTTOM")
            width, height = self.sides
            return width + left + right, height + top + bottom

        @property
        def change(self) -> float:
            """The strength, or what it is by default."""
            if self.strength is not None:
                return self.strength
            return 0.8 if self.image and not (self.mask or self.box or self.extend) else 1.0

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels."""
            width, height = self.size.split("x")
            return int(width), int(height)

    def __init__(self, folder: Path = STARTER) -> None:
        """Use the weights of `folder`, in the layout of diffusers' `StableDiffusionPipeline`, if inputs name none."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The folder's safetensors and configs. Raises WeightsError if it lacks a part."""
        folder = ref.path or self.folder
        for part in PARTS:
            if not (folder / part).exists():
                reason = f"`{folder}` is not an image model: it has no `{part}`"
                raise WeightsError(folder / part, reason, hint="name a folder that `studio train image` wrote")
        nets = [file for part in ("text_encoder", "unet", "vae") for file in tensors_of(folder / part)]
        return [*nets, *sorted(folder.glob("*/*config.json"))]  # configs decide the picture as well

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware multiplies it, else float32."""
        return fast_dtype(device)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> LatentDiffusion:
        """Build text encoder, U-Net and VAE."""
        import torch

        from studio_diffusion.latent import LatentDiffusion

        return LatentDiffusion(ref.path or self.folder, device, getattr(torch, dtype))

    def start(self, model: LatentDiffusion, inputs: Any, rng: studio.Rng) -> Denoising:
        """Encode the texts and draw the noise."""
        import torch

        from studio_diffusion.samplers import noise_levels

        (text, cut), (negative, more) = model.states(inputs.prompt), model.states(inputs.negative)
        most = max(len(text), len(negative))
        text, negative = (torch.cat([each, model.empty(most - len(each))]) for each in (text, negative))
        notices = (
            *told(inputs.prompt, cut, "prompt", model.tokenizer),
            *told(inputs.negative, more, "negative prompt", model.tokenizer),
            *vocabulary.notices(model.vocabulary, prompts.read(inputs.prompt).text, model.nearest),
        )
        width, height = inputs.canvas
        if width % model.factor or height % model.factor:
            raise InputError("size", f"`size` is {width}x{height}; this model draws multiples of {model.factor}")
        x = model.here(torch.randn(model.latent_shape(width, height), generator=rng.torch))
        levels = noise_levels(inputs.taken, model.shift, inputs.change)
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
        return Denoising(
            steps=len(levels) - 1, notices=notices, x=x, x0_before=None, text=text, negative=negative, levels=levels,
            guidance=inputs.walk[1], rescale=inputs.rescale, sampler=inputs.sampler,
            skips=inputs.cache, **kept,
        )  # fmt: skip

    def step(self, model: LatentDiffusion, states: Sequence[Denoising]) -> list[Denoising]:
        """One denoising step for all states together."""
        from studio_diffusion.latent import Row

        rows = [
            Row(known=_known(a), x=a.x, x0_before=a.x0_before, text=a.text, negative=a.negative, guidance=a.guidance,
                rescale=a.rescale, sampler=a.sampler, s=a.levels[a.position], s_next=a.levels[a.position + 1],
                s_before=a.levels[a.position - 1] if a.position else 0.0)
            for a in states
        ]  # fmt: skip
        moved = model.step(rows)
        return [_moved(model, a, x, x0) for a, (x, x0) in zip(states, moved, strict=True)]

    def finish(self, model: LatentDiffusion, state: Denoising) -> studio.Image:
        """Decode the latents."""
        return self.finish_many(model, [state])[0]

    def finish_many(self, model: LatentDiffusion, states: Sequence[Denoising]) -> list[studio.Image]:
        """Decode the latents of all together."""
        import torch

        made = model.decode(torch.stack([model.here(a.x) for a in states])).numpy()
        return [studio.Image.from_array(_composite(a, each)) for a, each in zip(states, made, strict=True)]

    def preview(self, model: LatentDiffusion, state: Denoising) -> studio.Image | None:
        """Decode what the model now takes for the clean latents."""
        if state.x0_before is None:
            return None
        return studio.Image.from_array(_composite(state, model.decode(state.x0_before[None])[0].numpy()))

    def batch_key(self, state: Denoising) -> Hashable:
        """Pictures of one size share a step, whatever their steps, guidance, position and prompts of so many chunks."""
        return (*state.x.shape, len(state.text))

    def facts(self, model: LatentDiffusion, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        return {
            "noise_schedule": {
                "kind": "rectified flow",
                "shift": model.shift,
                "steps": inputs.taken,
                "begin": inputs.change,
            },
            "steps": inputs.walk[0],
            "guidance": inputs.walk[1],
            "size": f"{inputs.canvas[0]}x{inputs.canvas[1]}",
            **({"strength": inputs.change} if inputs.image is not None else {}),
            "sampler": inputs.sampler,
            "steps_asked": sum(not inputs.cache or skipping.asks(i, inputs.taken) for i in range(inputs.taken)),
        }


def _known(a: Denoising) -> Tensor | None:
    """The clean latents where this step does not ask the net."""
    return a.x0_before if a.skips and not skipping.asks(a.position, a.steps) else None


def _moved(model: LatentDiffusion, a: Denoising, x: Tensor, x0: Tensor) -> Denoising:
    """The state a step later; what is kept is put where it stands at the next noise level, whatever the net said."""
    import torch

    if a.kept_x0 is not None:
        assert a.cells is not None
        assert a.kept_noise is not None
        kept, noise, cells = map(model.here, (a.kept_x0, a.kept_noise, a.cells))
        x = torch.lerp(torch.lerp(kept, noise, a.levels[a.position + 1]), x, cells)
        x0 = torch.lerp(kept, x0, cells)
    return replace(a, position=a.position + 1, x=x, x0_before=x0)


def _composite(a: Denoising, made: Any) -> Any:
    """A decoded picture, uint8 (H, W, 3), with the kept pixels as they were."""
    if a.pixels is None or a.mask is None:
        return made
    return edit.composite(made, a.pixels.cpu().numpy(), a.mask.cpu().numpy())
