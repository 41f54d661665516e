"""The generator `image`: text to picture by latent diffusion, on the starter weights that ship with the plugin.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

import studio
from studio.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from studio_diffusion.latent import LatentDiffusion

STARTER = Path(__file__).parent / "weights" / "starter"
PARTS = ("model_index.json", "tokenizer", "text_encoder", "unet", "vae")
SMALLEST, LARGEST, MULTIPLE = 64, 512, 32
_SIZE = re.compile(r"(\d{1,5})\s*[x×*]\s*(\d{1,5})")


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoising(studio.State):
    """Latents on their way from noise to picture.

    Attributes:
        x: (C, H, W) float32 latents.
        x0_before: the clean latents as seen at the step before, or None at the first.
        text, negative: (T, W) token states of the prompt and of what to keep away from.
        levels: noise levels, `steps + 1` numbers falling to 0.
    """

    x: Tensor
    x0_before: Tensor | None
    text: Tensor
    negative: Tensor
    levels: tuple[float, ...]
    guidance: float
    sampler: str


class ImageGenerator(studio.Generator):
    """Make a picture from a text, by latent diffusion."""

    name = "image"
    output = studio.Image
    version = "3"
    max_batch: ClassVar[int] = 8
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """What `studio image` asks for."""

        prompt: str = studio.field(help="what to draw, in English or Chinese", min_length=1, max_length=2000)
        negative: str = studio.field("", help="what to keep away from", max_length=2000)
        steps: int = studio.field(20, ge=1, le=1000, help="denoising steps; more are slower and finer")
        guidance: float = studio.field(
            5.0, ge=1, le=30, help="how closely to follow the prompt; 1 is off and twice as fast"
        )
        size: str = studio.field(
            "128x128", help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}"
        )
        sampler: str = studio.field(
            "dpmpp-2m", choices=("dpmpp-2m", "euler"), help="how to go from one noise level to the next"
        )

        @field_validator("prompt")
        @classmethod
        def _not_blank(cls, value: str) -> str:
            if not value.strip():
                raise ValueError("is empty: say what to draw")
            return value

        @field_validator("size")
        @classmethod
        def _parse_size(cls, value: str) -> str:
            match = _SIZE.fullmatch(value.strip())
            sides = [int(side) for side in match.groups()] if match else []
            if not sides or any(side % MULTIPLE or not SMALLEST <= side <= LARGEST for side in sides):
                raise ValueError(f"must be WIDTHxHEIGHT, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}")
            return f"{sides[0]}x{sides[1]}"

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels."""
            width, height = self.size.split("x")
            return int(width), int(height)

    def __init__(self, folder: Path = STARTER) -> None:
        """Use the weights of `folder`, in the layout of diffusers' `StableDiffusionPipeline`."""
        self.folder = folder

    def weights(self) -> list[Path]:
        """The folder's safetensors. Raises WeightsError if it lacks a part."""
        for part in PARTS:
            if not (self.folder / part).exists():
                reason = f"`{self.folder}` is no image model: it has no `{part}`"
                raise WeightsError(self.folder / part, reason, hint="install the package again, or name another folder")
        return sorted(self.folder.rglob("*.safetensors"))

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware multiplies it, else float32."""
        import torch

        if device.startswith("cuda"):
            return "bfloat16"
        return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"

    def load(self, device: str, dtype: str) -> LatentDiffusion:
        """Build text encoder, U-Net and VAE."""
        import torch

        from studio_diffusion.latent import LatentDiffusion

        return LatentDiffusion(self.folder, device, getattr(torch, dtype))

    def start(self, model: LatentDiffusion, inputs: Any, rng: studio.Rng) -> Denoising:
        """Encode the texts and draw the noise."""
        import torch

        from studio_diffusion.samplers import noise_levels

        tokens, cut = zip(*(model.tokenize(text) for text in (inputs.prompt, inputs.negative)), strict=True)
        text, negative = (model.encode(each) for each in tokens)
        length = model.tokenizer.model_max_length
        notices = tuple(
            f"the {name} is longer than {length - 2} tokens; left out: “{words}”"
            for name, words in zip(("prompt", "negative prompt"), cut, strict=True) if words
        )  # fmt: skip
        return Denoising(
            steps=inputs.steps, notices=notices, x=torch.randn(model.latent_shape(*inputs.sides), generator=rng.torch),
            x0_before=None, text=text, negative=negative, levels=noise_levels(inputs.steps),
            guidance=inputs.guidance, sampler=inputs.sampler,
        )  # fmt: skip

    def step(self, model: LatentDiffusion, states: Sequence[Denoising]) -> list[Denoising]:
        """One denoising step for all states together."""
        from studio_diffusion.latent import Row

        rows = [
            Row(x=a.x, x0_before=a.x0_before, text=a.text, negative=a.negative, guidance=a.guidance, sampler=a.sampler,
                s=a.levels[a.position], s_next=a.levels[a.position + 1],
                s_before=a.levels[a.position - 1] if a.position else 0.0)
            for a in states
        ]  # fmt: skip
        moved = model.step(rows)
        return [
            replace(a, position=a.position + 1, x=x, x0_before=x0) for a, (x, x0) in zip(states, moved, strict=True)
        ]

    def finish(self, model: LatentDiffusion, state: Denoising) -> studio.Image:
        """Decode the latents."""
        return self.finish_many(model, [state])[0]

    def finish_many(self, model: LatentDiffusion, states: Sequence[Denoising]) -> list[studio.Image]:
        """Decode the latents of all together."""
        import torch

        return [studio.Image.from_array(each) for each in model.decode(torch.stack([a.x for a in states])).numpy()]

    def preview(self, model: LatentDiffusion, state: Denoising) -> studio.Image | None:
        """Decode what the model now takes for the clean latents."""
        return (
            None if state.x0_before is None else studio.Image.from_array(model.decode(state.x0_before[None])[0].numpy())
        )

    def batch_key(self, state: Denoising) -> Hashable:
        """Pictures of one size share a step, whatever their prompts, steps, guidance and position."""
        return tuple(state.x.shape)

    def facts(self, model: LatentDiffusion, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        return {
            "noise_schedule": {"kind": "rectified flow", "shift": 1.0, "steps": inputs.steps},
            "sampler": inputs.sampler,
        }
