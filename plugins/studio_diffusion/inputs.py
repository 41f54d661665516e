"""The inputs of the generator `image`. Importing this loads no torch.

Try it: ``ImageInputs.parse({"prompt": "a red apple"}).sides`` is ``(128, 128)``
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

import studio
from studio.diffusion import prompts
from studio_diffusion import edit, sizes

SMALLEST, LARGEST, MULTIPLE = 64, 1024, 32
LARGEST_STOCK = 4096
STEPS, GUIDANCE, SIDE = 20, 5.0, 128  # of the starter
FAST_STEPS, FAST_GUIDANCE = 4, 4.0  # the best of those tried (docs/log.md); few steps need less guidance
SAMPLERS = ("dpmpp-2m", "euler")
"""The starters' samplers, the default first."""


def checked_prompt(value: str, info: ValidationInfo, verb: str) -> str:
    """A `prompt` or `negative` prompt. Raises ValueError for wrong weights, and for a `prompt` without words."""
    if info.field_name == "prompt" and not value.strip():
        raise ValueError(f"is empty; describe what to {verb}")
    found = prompts.read(value)
    if info.field_name == "prompt" and not found.text:
        raise ValueError(f"has brackets and tags only; describe what to {verb}")
    return value


def checked_sampler(value: str, info: ValidationInfo) -> str:
    """A sampler's name. Raises ValueError for one that the starters do not have, if no `model` is given."""
    if value and value not in SAMPLERS and not info.data.get("model"):
        raise ValueError(f"must be {' or '.join(SAMPLERS)}; other models may have others")
    return value


class ImageInputs(studio.Inputs):
    """The inputs of `studio image`."""

    prompt: str = studio.field(
        help="prompt, in English or Chinese; (word:1.3) weights a word, \\( is a literal bracket",
        min_length=1,
        max_length=2000,
    )
    negative: str = studio.field("", help="negative prompt", max_length=2000, aliases=("negative_prompt",))
    model: str = studio.model_field(
        "a folder from `studio train image`, a pulled model, or a pipeline of diffusers (with its own defaults): a "
        "folder, a safetensors file or a GGUF file"
    )
    base: str = studio.addition_field(
        "base", help="for a `model` in one file, a folder of diffusers with what the file lacks", many=False
    )
    lora: list[str] = studio.addition_field(
        "lora", help="a LoRA for `model`: a file, a folder or a pulled model, with `:WEIGHT` if it is not 1, such as "
        "`style.safetensors:0.8`",
    )  # fmt: skip
    embedding: list[str] = studio.addition_field(
        "embedding", help="a textual inversion for `model`; its word in prompts is its file's name"
    )
    vae: str = studio.addition_field("vae", help="another VAE for `model`: a folder or a safetensors file", many=False)
    controlnet: list[str] = studio.addition_field("controlnet", help="a folder with a ControlNet for `model`")
    control: list[studio.Image] = studio.field(
        default_factory=list,
        max_length=16,
        help="the picture that the ControlNet follows (edges, depth …); of several ControlNets one each, in order",
    )
    control_scale: list[Annotated[float, Field(ge=0, le=10)]] = studio.field(
        default_factory=list,
        max_length=16,
        help="how much the ControlNet counts; 1 is usual. Of several, one for all or one each",
    )
    ip_adapter: list[str] = studio.addition_field(
        "ip_adapter", help="an IP-Adapter for `model`: a file with its `image_encoder`, with `:SCALE` if it is not 1"
    )
    ip_image: list[studio.Image] = studio.field(
        default_factory=list, max_length=16, help="the picture for the IP-Adapter; of several one each, in order"
    )
    clip_skip: int | None = studio.field(
        None, ge=1, le=12, help="layers of the CLIP text encoder of `model` to skip at its end"
    )
    steps: int | None = studio.field(
        None,
        ge=1,
        le=1000,
        help=f"denoising steps; more are slower, with more detail. Default: {STEPS}, or the model's own",
        aliases=("num_inference_steps",),
    )
    guidance: float | None = studio.field(
        None,
        ge=0,
        le=30,
        help="guidance scale: how closely to follow the prompt; 1 is off and twice as fast. Default: "
        f"{GUIDANCE:g}, or the model's own",
        aliases=("guidance_scale",),
    )
    rescale: float = studio.field(
        0.0,
        ge=0,
        le=1,
        help="guidance rescale, against harsh colours at high guidance; try 0.7",
    )
    size: str = studio.field(
        "",
        help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}; with `model` a "
        f"multiple that it supports, up to {LARGEST_STOCK}. Default: {SIDE}x{SIDE}, or the model's own",
        aliases=("{width}x{height}",),
    )
    sampler: str = studio.field("", help=f"sampler (ODE solver): {' or '.join(SAMPLERS)}; with `model` any that fits "
                                f"it. Default: {SAMPLERS[0]}, or the model's own")  # fmt: skip
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

    @field_validator("prompt", "negative")
    @classmethod
    def _check_prompt(cls, value: str, info: ValidationInfo) -> str:
        return checked_prompt(value, info, "draw")

    @field_validator("controlnet", "control", "control_scale", "ip_adapter", "ip_image", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [] if value in (None, "") else value if isinstance(value, list | tuple) else [value]

    @field_validator("size")
    @classmethod
    def _parse_size(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return ""
        if info.data.get("model"):
            return sizes.parse(value, 1, SMALLEST, LARGEST_STOCK)
        return sizes.parse(value, MULTIPLE, SMALLEST, LARGEST)

    @field_validator("sampler")
    @classmethod
    def _check_sampler(cls, value: str, info: ValidationInfo) -> str:
        return checked_sampler(value, info)

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
        return self

    @model_validator(mode="after")
    def _for_other_models(self) -> Self:
        named = (
            "base",
            "lora",
            "embedding",
            "vae",
            "controlnet",
            "control",
            "control_scale",
            "ip_adapter",
            "ip_image",
            "clip_skip",
        )
        given = [name for name in named if getattr(self, name) not in (None, "", [])]
        if given and not self.model:
            raise ValueError(f"`{given[0]}` needs a model of diffusers: give `model` too")
        if self.controlnet and len(self.controlnet) != len(self.control):
            counts = f"{len(self.controlnet)} `controlnet` and {len(self.control)} `control`"
            raise ValueError(f"there are {counts}; give as many of each")
        if len(self.ip_adapter) != len(self.ip_image):
            counts = f"{len(self.ip_adapter)} `ip_adapter` and {len(self.ip_image)} `ip_image`"
            raise ValueError(f"there are {counts}; give as many of each")
        if len(self.control_scale) > 1 and len(self.control_scale) != len(self.control):
            counts = f"{len(self.control_scale)} `control_scale` and {len(self.control)} `control`"
            raise ValueError(f"there are {counts}; give one for all, or one each")
        return self

    @model_validator(mode="after")
    def _largest_canvas(self) -> Self:
        if self.model:
            return self
        width, height = self.canvas
        if any(side % MULTIPLE or side > LARGEST for side in (width, height)):
            raise ValueError(f"`extend` makes the picture {width}x{height}, but both must be multiples of "
                             f"{MULTIPLE} up to {LARGEST}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _fast_chooses(self) -> Self:
        for name, usual in (("steps", STEPS), ("guidance", GUIDANCE)):
            if self.fast and getattr(self, name) not in (None, usual):
                raise ValueError(f"`fast` chooses `{name}` itself: leave out one of the two")
        return self

    @property
    def steps_and_guidance(self) -> tuple[int, float]:
        """The starter's number of steps from pure noise, and its guidance scale."""
        if self.fast:
            return FAST_STEPS, FAST_GUIDANCE
        return self.steps or STEPS, GUIDANCE if self.guidance is None else self.guidance

    @property
    def steps_taken(self) -> int:
        """The number of steps that run: a strength below 1 runs a fraction of them."""
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
        """Width and height in pixels, the starter's if none are given."""
        width, height = self.size.split("x") if self.size else (SIDE, SIDE)
        return int(width), int(height)
