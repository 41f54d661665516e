"""The generator `ddpm`: small pictures by diffusion in pixels, of a label or of whatever the model knows.

Draws with any folder in the layout of diffusers' `DDPMPipeline`; the starter knows emoji of animals and foods.
Importing this loads no torch; `load` does.

Try it: ``studio generate ddpm --of strawberry``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio.errors import InputError, WeightsError
from studio.models.formats import is_pickle
from studio_diffusion.layout import part, tensors_of

if TYPE_CHECKING:
    from torch import Tensor

    from studio_diffusion.pixel import PixelDiffusion

_LAYOUT = "a folder in the layout of diffusers' DDPMPipeline"
STARTER = Path(__file__).parent / "weights" / "ddpm"


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoising(studio.State):
    """A picture on its way out of noise.

    Attributes:
        x: (C, H, W) float32 on the model's device, at the time `times[position]`.
        times: `steps + 1` falling times, the last that of a clean picture.
        label: the class told, or None for a net that is told none.
        past: of the last two steps, the latest first: (time, x0, x).
        rng: what the sampler `ddpm` draws from.
    """

    x: Tensor
    times: tuple[int, ...]
    label: int | None
    guidance: float
    sampler: str
    rng: studio.Rng
    past: tuple[tuple[int, Tensor, Tensor], ...] = ()


class DdpmGenerator(studio.Generator):
    """Make a small picture out of noise, by diffusion in pixels."""

    name = "ddpm"
    output = studio.Image
    max_batch: ClassVar[int] = 64
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """What `studio generate ddpm` asks for."""

        of: str = studio.field("", help="what to draw, one of the model's labels; empty is any", max_length=200)
        model: str = studio.model_field("a folder in the layout of diffusers' DDPMPipeline, or a pulled one")
        steps: int = studio.field(
            20, ge=1, le=1000, help="denoising steps; more are slower and finer", aliases=("num_inference_steps",)
        )
        guidance: float = studio.field(
            2.0, ge=1, le=30, help="how closely to follow the label; 1 is off", aliases=("guidance_scale",)
        )
        sampler: str = studio.field(
            "dpmpp-2m", choices=("dpmpp-2m", "unipc", "ddim", "euler", "ddpm"),
            help="how to go from one noise level to the next; ddpm wants many steps",
        )  # fmt: skip
        size: str = studio.field(
            "",
            help="WIDTHxHEIGHT, only that of the model; empty is that",
            max_length=20,
            aliases=("{width}x{height}",),
        )

    def __init__(self, folder: Path = STARTER) -> None:
        """Use the weights of `folder`, in the layout of diffusers' `DDPMPipeline`, where inputs name none."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The folder's files that decide the picture. Raises WeightsError if it lacks one, or has pickles alone."""
        folder = ref.path or self.folder
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            if folder.exists() and is_pickle(folder.name):
                what = "may be a pickle, and loading one runs its code"
            raise WeightsError(folder, f"the model `{folder}` {what}", hint=f"name {_LAYOUT}")
        net, scheduler = part(folder, "unet"), part(folder, "scheduler")
        small = [net / "config.json", scheduler / "scheduler_config.json"]
        for path in small:
            if not path.exists():
                reason = f"`{folder}` is no DDPM: it has no `{path.relative_to(folder)}`"
                raise WeightsError(path, reason, hint=f"name {_LAYOUT}")
        tensors = tensors_of(net)
        if not tensors:
            pickles = [each for each in net.iterdir() if is_pickle(each.name)]
            found = f"only `{pickles[0].name}`, a pickle, and loading one runs its code" if pickles else "no weights"
            convert = (
                "; `DDPMPipeline.from_pretrained(folder).save_pretrained(new)`, on a machine that may, converts it"
            )
            hint = "get the model's *.safetensors" + (convert if pickles else "")
            raise WeightsError(net, f"the net of `{folder}` has {found}", hint=hint)
        others = [folder / "labels.json", folder / "model_index.json"]
        return [*tensors, *small, *(each for each in others if each.exists())]

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> PixelDiffusion:
        """Build the U-Net. Raises WeightsError for what is damaged or does not fit."""
        import torch

        from studio_diffusion.pixel import PixelDiffusion

        return PixelDiffusion.load(ref.path or self.folder, device, getattr(torch, dtype))

    def start(self, model: PixelDiffusion, inputs: Any, rng: studio.Rng) -> Denoising:
        """Draw the noise. Raises InputError or UnknownName for what the model does not have."""
        import torch

        _, height, width = model.shape
        if inputs.size and inputs.size.strip() != f"{width}x{height}":
            raise InputError("size", f"`{inputs.size}` is refused: the model draws {width}x{height} and nothing else",
                             hint="leave `size` out, and make the picture larger afterwards")  # fmt: skip
        if inputs.steps > len(model.schedule):
            raise InputError("steps", f"{inputs.steps} steps are more than the {len(model.schedule)} of the model",
                             hint=f"give 1 to {len(model.schedule)}")  # fmt: skip
        label, guidance = model.class_of(inputs.of), inputs.guidance
        notices: tuple[str, ...] = ()
        if label is not None and model.none is None and guidance > 1:
            guidance, notices = 1.0, ("the model knows no class for none: it is not guided",)
        return Denoising(
            steps=inputs.steps, notices=notices, label=label,
            x=model.here(torch.randn(model.shape, generator=rng.torch)), times=model.times(inputs.steps),
            guidance=guidance, sampler=inputs.sampler, rng=rng,
        )  # fmt: skip

    def step(self, model: PixelDiffusion, states: Sequence[Denoising]) -> list[Denoising]:
        """One denoising step for all states together."""
        import torch

        from studio_diffusion.pixel import Row

        rows = [
            Row(x=a.x, label=a.label, guidance=a.guidance, sampler=a.sampler, past=a.past, t=a.times[a.position],
                t_next=model.schedule.after(a.times, a.position, a.sampler),
                noise=torch.randn(a.x.shape, generator=a.rng.fork(a.position).torch) if a.sampler == "ddpm" else None)
            for a in states
        ]  # fmt: skip
        return [
            replace(a, position=a.position + 1, x=row.x, past=row.past)
            for a, row in zip(states, model.step(rows), strict=True)
        ]

    def finish(self, model: PixelDiffusion, state: Denoising) -> studio.Image:
        """The picture."""
        return studio.Image.from_array(model.pictures(state.x[None])[0].numpy())

    def preview(self, model: PixelDiffusion, state: Denoising) -> studio.Image | None:
        """What the model now takes for the clean picture."""
        return studio.Image.from_array(model.pictures(state.past[0][1][None])[0].numpy()) if state.past else None

    def batch_key(self, state: Denoising) -> Hashable:
        """Pictures of one model share a step, whatever their labels, steps, samplers, guidance and position."""
        return tuple(state.x.shape)

    def facts(self, model: PixelDiffusion, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        stock = model.schedule.config
        return {
            "noise_schedule": {"kind": stock["beta_schedule"], "spacing": stock["timestep_spacing"],
                               "prediction": stock["prediction_type"], "steps": inputs.steps},
            "sampler": inputs.sampler,
        }  # fmt: skip
