"""The generator `ddpm`: small pictures by pixel diffusion, class-conditional or unconditional.

Works with any folder in the layout of diffusers' `DDPMPipeline`; the starter knows emoji of animals and foods.
Importing this loads no torch; `load` does.

Try it: ``studio generate ddpm --of strawberry``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio.diffusion.layout import part, tensors_of
from studio.errors import InputError, WeightsError
from studio.models.formats import is_pickle

if TYPE_CHECKING:
    from torch import Tensor

    from studio_diffusion.pixel import PixelDiffusion

_LAYOUT = "a folder in the layout of diffusers' DDPMPipeline"
STARTER = Path(__file__).parent / "weights" / "ddpm"


@dataclass(frozen=True, kw_only=True, eq=False)
class DdpmState(studio.State):
    """The state of a picture being denoised.

    Attributes:
        x: (C, H, W) float32 on the model's device, at timestep `times[position]`.
        times: `steps + 1` falling timesteps, the last that of a clean picture.
        label: the class, or None for an unconditional U-Net.
        past: the last two steps, latest first: (timestep, x0, x).
        rng: random numbers for the sampler `ddpm`.
    """

    x: Tensor
    times: tuple[int, ...]
    label: int | None
    guidance: float
    sampler: str
    rng: studio.Rng
    past: tuple[tuple[int, Tensor, Tensor], ...] = ()


class DdpmGenerator(studio.Generator):
    """Generate a small picture by pixel diffusion."""

    name = "ddpm"
    output = studio.Image
    max_batch: ClassVar[int] = 64
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """The inputs of `studio generate ddpm`."""

        of: str = studio.field("", help="class to draw, one of the model's labels; empty draws any", max_length=200)
        model: str = studio.model_field("a folder in the layout of diffusers' DDPMPipeline, or a pulled model")
        steps: int = studio.field(
            20,
            ge=1,
            le=1000,
            help="denoising steps; more are slower, with more detail",
            aliases=("num_inference_steps",),
        )
        guidance: float = studio.field(
            2.0, ge=1, le=30, help="guidance scale, for the label; 1 is off", aliases=("guidance_scale",)
        )
        sampler: str = studio.field(
            "dpmpp-2m", choices=("dpmpp-2m", "unipc", "ddim", "euler", "ddpm"),
            help="sampler (ODE solver); ddpm needs many steps",
        )  # fmt: skip
        size: str = studio.field(
            "",
            help="WIDTHxHEIGHT; only the model's own size",
            max_length=20,
            aliases=("{width}x{height}",),
        )

    def __init__(self, folder: Path = STARTER) -> None:
        """`folder`, in the layout of diffusers' `DDPMPipeline`, is the default model."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The files that affect the picture. Raises WeightsError if one is missing, or if there are only pickles."""
        folder = ref.path or self.folder
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            if folder.exists() and is_pickle(folder.name):
                what = "may be a pickle, which can run code when loaded"
            raise WeightsError(folder, f"the model `{folder}` {what}", hint=f"use {_LAYOUT}")
        net, scheduler = part(folder, "unet"), part(folder, "scheduler")
        small = [net / "config.json", scheduler / "scheduler_config.json"]
        for path in small:
            if not path.exists():
                reason = f"`{folder}` is not a DDPM: it has no `{path.relative_to(folder)}`"
                raise WeightsError(path, reason, hint=f"use {_LAYOUT}")
        tensors = tensors_of(net)
        if not tensors:
            pickles = [each for each in net.iterdir() if is_pickle(each.name)]
            found = f"only `{pickles[0].name}`, a pickle, which can run code when loaded" if pickles else "no weights"
            convert = "; or convert it in a sandbox: `DDPMPipeline.from_pretrained(folder).save_pretrained(new)`"
            hint = "get the model's *.safetensors" + (convert if pickles else "")
            raise WeightsError(net, f"the U-Net of `{folder}` has {found}", hint=hint)
        others = [folder / "labels.json", folder / "model_index.json"]
        return [*tensors, *small, *(each for each in others if each.exists())]

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> PixelDiffusion:
        """Load the U-Net. Raises WeightsError if files are damaged or do not fit."""
        import torch

        from studio_diffusion.pixel import PixelDiffusion

        return PixelDiffusion.load(ref.path or self.folder, device, getattr(torch, dtype))

    def start(self, model: PixelDiffusion, inputs: Any, rng: studio.Rng) -> DdpmState:
        """Sample the noise. Raises InputError or UnknownName for what the model does not support."""
        import torch

        _, height, width = model.shape
        if inputs.size and inputs.size.strip() != f"{width}x{height}":
            raise InputError("size", f"`size` is `{inputs.size}`; this model draws only {width}x{height}",
                             hint="leave out `size`, and resize the picture afterwards")  # fmt: skip
        if inputs.steps > len(model.schedule):
            raise InputError("steps", f"`steps` is {inputs.steps}; the model has {len(model.schedule)}",
                             hint=f"give 1 to {len(model.schedule)}")  # fmt: skip
        label, guidance = model.class_of(inputs.of), inputs.guidance
        notices: tuple[str, ...] = ()
        if label is not None and model.none is None and guidance > 1:
            guidance, notices = 1.0, ("guidance is off: the model has no class for no label",)
        return DdpmState(
            steps=inputs.steps, notices=notices, label=label,
            x=model.here(torch.randn(model.shape, generator=rng.torch)), times=model.times(inputs.steps),
            guidance=guidance, sampler=inputs.sampler, rng=rng,
        )  # fmt: skip

    def step(self, model: PixelDiffusion, states: Sequence[DdpmState]) -> list[DdpmState]:
        """One batched denoising step."""
        import torch

        from studio_diffusion.pixel import PixelRow

        rows = [
            PixelRow(x=a.x, label=a.label, guidance=a.guidance, sampler=a.sampler, past=a.past, t=a.times[a.position],
                t_next=model.schedule.after(a.times, a.position, a.sampler),
                noise=torch.randn(a.x.shape, generator=a.rng.fork(a.position).torch) if a.sampler == "ddpm" else None)
            for a in states
        ]  # fmt: skip
        return [
            replace(a, position=a.position + 1, x=row.x, past=row.past)
            for a, row in zip(states, model.step(rows), strict=True)
        ]

    def finish(self, model: PixelDiffusion, state: DdpmState) -> studio.Image:
        """The picture."""
        return studio.Image.from_array(model.pictures(state.x[None])[0].numpy())

    def preview(self, model: PixelDiffusion, state: DdpmState) -> studio.Image | None:
        """The predicted clean picture."""
        return studio.Image.from_array(model.pictures(state.past[0][1][None])[0].numpy()) if state.past else None

    def batch_key(self, state: DdpmState) -> Hashable:
        """All pictures of one model share steps."""
        return tuple(state.x.shape)

    def facts(self, model: PixelDiffusion, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        config = model.schedule.config
        return {
            "noise_schedule": {"kind": config["beta_schedule"], "spacing": config["timestep_spacing"],
                               "prediction": config["prediction_type"], "steps": inputs.steps},
            "sampler": inputs.sampler,
        }  # fmt: skip
