"""Text-to-image by Studio's own latent diffusion: rectified flow in the latents of a VAE, with the starter's weights.

Try it: ``studio image "a red apple"``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import studio
from studio.diffusion import prompts
from studio.diffusion.chunks import notices as prompt_notices
from studio.diffusion.samplers import noise_levels
from studio.errors import InputError
from studio_diffusion import edit, step_cache, vocabulary
from studio_diffusion.inputs import SAMPLERS, ImageInputs
from studio_diffusion.latent import LatentDiffusion, LatentRow


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

    @property
    def key(self) -> Hashable:
        """Pictures of one size, with prompts of the same number of chunks, share a step."""
        return (*self.x.shape, len(self.text))


def start(model: LatentDiffusion, inputs: ImageInputs, rng: studio.Rng) -> ImageState:
    """Encode the prompts and sample the noise."""
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
        guidance=inputs.steps_and_guidance[1], rescale=inputs.rescale, sampler=inputs.sampler or SAMPLERS[0],
        skips=inputs.cache, **kept,
    )  # fmt: skip


def step(model: LatentDiffusion, states: Sequence[ImageState]) -> list[ImageState]:
    """One batched denoising step."""
    rows = [
        LatentRow(
            known=_cached_x0(a), x=a.x, x0_before=a.x0_before, text=a.text, negative=a.negative,
            guidance=a.guidance, rescale=a.rescale, sampler=a.sampler, s=a.levels[a.position],
            s_next=a.levels[a.position + 1], s_before=a.levels[a.position - 1] if a.position else 0.0,
        )
        for a in states
    ]  # fmt: skip
    return [_next_state(model, a, x, x0) for a, (x, x0) in zip(states, model.step(rows), strict=True)]


def finish_many(model: LatentDiffusion, states: Sequence[ImageState]) -> list[studio.Image]:
    """Decode the latents of all states in one batch."""
    made = model.decode(torch.stack([model.here(a.x) for a in states])).numpy()
    return [studio.Image.from_array(_composite(a, each)) for a, each in zip(states, made, strict=True)]


def preview(model: LatentDiffusion, state: ImageState) -> studio.Image | None:
    """Decode the predicted x_0."""
    if state.x0_before is None:
        return None
    return studio.Image.from_array(_composite(state, model.decode(state.x0_before[None])[0].numpy()))


def facts(model: LatentDiffusion, inputs: ImageInputs) -> dict[str, Any]:
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
        "sampler": inputs.sampler or SAMPLERS[0],
        "steps_asked": sum(not inputs.cache or step_cache.runs_model(i, steps) for i in range(steps)),
    }


def _cached_x0(a: ImageState) -> Tensor | None:
    """The x_0 of the previous step where this step reuses it instead of running the U-Net; else None."""
    return a.x0_before if a.skips and not step_cache.runs_model(a.position, a.steps) else None


def _next_state(model: LatentDiffusion, a: ImageState, x: Tensor, x0: Tensor) -> ImageState:
    """The state one step later; kept regions are reset to the original at the next noise level."""
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
