"""The video generator with Studio's own model: start, batched steps, and decoding to frames.

Conditioning frames (a first picture, a last one, the end of a clip) are latents without noise; the rest is denoised
around them. `video.py` uses this module for Studio's weights, and `stock.py` for pipelines of diffusers.

Try it: `windows(100)` gives the passes of a clip of 100 frames
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import studio
from studio.diffusion import prompts
from studio.diffusion.samplers import noise_levels
from studio.errors import InputError
from studio_diffusion import vocabulary
from studio_video import fit
from studio_video.denoising import VideoRow
from studio_video.latent import LatentVideo
from studio_video.packing import AttentionPattern
from studio_video.temporal_filter import filtered

LARGEST = 256
"""The most pixels per side: more than in training, and the most that is practical on a CPU."""
WINDOW, OVERLAP = 64, 16
"""Frames per pass, and the overlap of neighbouring passes, for clips longer than one pass."""
MEMORY = 4
"""Conditioning frames from the end of a clip that is extended."""
UNTRAINED = "the model was not trained with `factorised` attention, which breaks shapes; use `window` for speed"
"""The notice for factorised attention: a model trained with full attention gives blots with it."""
LOWEST, HIGHEST = 0.3, 0.75
"""Noise levels of the last step of temporal refinement and of the first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoState(studio.State):
    """The state of a clip being denoised. Latents and text states are on the model's device, the rest on the CPU.

    Attributes:
        x: (T, C, h, w) float32 latents, clean at conditioning frames (`given` (T,)).
        x0_before: the x_0 predicted at the previous step, or None at the first.
        times: (T,) the position of each frame in the clip, from 0 to 1.
        text, negative: (n, W) text encoder states of the prompt and of the negative prompt.
        levels: noise levels, `steps + 1` numbers falling to 0.
        before, after: uint8 (n, H, W, 3), frames copied to the beginning and the end of the output.
        hidden: frames at the beginning of `x` that repeat some of `before`.
        attention: the kind of `AttentionPattern`.
        rng: random numbers for temporal refinement.
    """

    x: Tensor
    x0_before: Tensor | None
    times: Tensor
    given: Tensor
    text: Tensor
    negative: Tensor
    levels: tuple[float, ...]
    guidance: float
    sampler: str
    fps: float
    loop: bool
    attention: str
    before: Tensor
    after: Tensor
    hidden: int
    rng: studio.Rng

    @property
    def key(self) -> Hashable:
        """Clips with one attention pattern, and sizes within a factor of two, share a step.

        The cost of a step is recorded by key and batch size, so clips of very different sizes need different keys.
        """
        frames, _, height, width = self.x.shape
        return self.attention, (frames * height * width).bit_length()


def start(model: LatentVideo, inputs: Any, rng: studio.Rng) -> VideoState:
    """Encode the prompts and the conditioning frames, and sample the noise. Raises InputError for a large size."""
    if max(inputs.sides) > LARGEST:
        raise InputError("size", f"`size` is {inputs.size}; this model supports up to {LARGEST} pixels per side")
    given = fit.conditioning_frames(inputs, MEMORY)
    frames = inputs.frames + given.hidden + inputs.loop
    x = model.here(_noise(model.latent_shape(frames, *inputs.sides), rng.torch, inputs.loop))
    given_mask = torch.zeros(frames, dtype=torch.bool)
    for at, pixels in given.frames.items():
        given_mask[at] = True
        x[at] = model.encode(pixels[None])[0]
    text, negative = model.texts.read([inputs.prompt, inputs.negative])
    untrained = (UNTRAINED,) if inputs.attention == "factorised" else ()
    from_prompts = (
        *model.texts.notices(inputs.prompt, "prompt"),
        *model.texts.notices(inputs.negative, "negative prompt"),
    )
    from_vocabulary = vocabulary.notices(model.vocabulary, prompts.read(inputs.prompt).text, model.nearest)
    before, after = (torch.from_numpy(each.copy()) for each in (given.before, given.after))
    return VideoState(
        steps=inputs.steps, notices=(*given.notices, *from_prompts, *from_vocabulary, *untrained), x=x, x0_before=None,
        times=torch.linspace(0, 1, frames) if frames > 1 else torch.tensor([0.5]),
        given=given_mask, text=text, negative=negative, levels=levels(inputs.steps, frames), rng=rng,
        guidance=inputs.guidance, sampler=inputs.sampler, loop=inputs.loop, attention=inputs.attention,
        fps=inputs.extend.fps if inputs.extend else inputs.fps, before=before, after=after, hidden=given.hidden,
    )  # fmt: skip


def step(model: LatentVideo, states: Sequence[VideoState]) -> list[VideoState]:
    """One step for all states, packed into one forward pass."""
    stepped = model.step([_row(state) for state in states], AttentionPattern(states[0].attention))
    return [replace(a, position=a.position + 1, x=x, x0_before=x0) for a, (x, x0) in zip(states, stepped, strict=True)]


def _row(a: VideoState) -> VideoRow:
    """The inputs of a state's next step.

    Denoising leaves grain that differs between frames, which flickers. So the last steps are temporal refinement: they
    add new noise to x_0, predict it again without guidance, and keep a running mean in which later ones weigh more.
    """
    refinement = refinement_steps(a.steps, len(a.x))
    index = a.position - (a.steps - refinement)  # of the refinement step; below 0 while denoising
    next_refines = -1 <= index < refinement - 1
    return VideoRow(
        x=a.x, x0_before=a.x0_before, times=a.times, given=a.given, text=a.text, negative=a.negative,
        guidance=a.guidance if index < 0 else 1.0, s=a.levels[a.position], s_next=a.levels[a.position + 1],
        s_before=a.levels[a.position - 1] if a.position else 0.0, sampler=a.sampler, loop=a.loop,
        windows=windows(len(a.x)), weight=2 / (2 + max(index, 0)),
        noise=_noise(a.x.shape, a.rng.fork(a.position).torch, a.loop) if next_refines else None,
    )  # fmt: skip


def _noise(shape: Sequence[int], generator: torch.Generator, loop: bool) -> Tensor:
    """Noise for latents (T, C, h, w); in a loop the last frame equals the first."""
    made = torch.randn(tuple(shape), generator=generator)
    if loop:
        made[-1] = made[0]
    return made


def finish(model: LatentVideo, state: VideoState) -> studio.Video:
    """Decode the latents, filter out flicker, and insert the conditioning frames.

    The filter skips conditioning frames: details that the model does not reproduce would bleed into other frames.
    """
    last = len(state.x) - state.loop - len(state.after)
    made = model.decode(state.x[state.hidden or len(state.before) : last])
    made = filtered(made, loop=state.loop and not len(state.before))
    return studio.Video(torch.cat([state.before, made, state.after]).numpy(), state.fps)


def finish_many(model: LatentVideo, states: Sequence[VideoState]) -> list[studio.Video]:
    """Decode the latents of all states, one clip after another."""
    return [finish(model, state) for state in states]


def preview(model: LatentVideo, state: VideoState) -> studio.Image | None:
    """The middle frame of the predicted x_0."""
    if state.x0_before is None:
        return None
    middle = len(state.x0_before) // 2
    return studio.Image.from_array(model.decode(state.x0_before[middle : middle + 1])[0].numpy())


def facts(model: LatentVideo, inputs: Any) -> dict[str, Any]:
    """The noise schedule, the sampler, and the attention pattern."""
    frames = inputs.frames + (MEMORY if inputs.extend else 0)  # with conditioning frames a single frame is a clip too
    refining = refinement_steps(inputs.steps, frames)
    schedule = {"kind": "rectified flow", "shift": shift(frames), "steps": inputs.steps, "steadying": refining}
    return {"noise_schedule": schedule, "sampler": inputs.sampler, "views": inputs.attention}


def windows(frames: int) -> tuple[tuple[int, int], ...]:
    """The passes of a clip: (first, last + 1) of each, evenly spaced, overlapping by `OVERLAP` frames or more."""
    if frames <= WINDOW:
        return ((0, frames),)
    count = -(-(frames - OVERLAP) // (WINDOW - OVERLAP))
    starts = [round(i * (frames - WINDOW) / (count - 1)) for i in range(count)]
    return tuple((start, start + WINDOW) for start in starts)


def refinement_steps(steps: int, frames: int) -> int:
    """The number of temporal refinement steps: the last third of a clip's steps, none for a single frame."""
    return steps // 3 if frames > 1 else 0


def levels(steps: int, frames: int) -> tuple[float, ...]:
    """The noise schedule: the level at the beginning of each step, and 0."""
    last = refinement_steps(steps, frames)
    falling = np.linspace(LOWEST, HIGHEST, last)[::-1].tolist()  # a single one is the lowest
    return (*noise_levels(steps, shift(frames))[: steps - last], *falling, 0.0)


def shift(frames: int) -> float:
    """The schedule's shift: frames are redundant, so a clip needs more steps at high noise (Esser et al. 2024)."""
    return 1.0 if frames == 1 else 2.0
