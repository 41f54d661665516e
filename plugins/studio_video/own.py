"""How the project's own video model makes a clip: from inputs to noise, a step for many, from latents to frames.

What is given (a first picture, a last one, the end of a clip) stands in the latents as frames without noise; the rest
is denoised around it. `video.py` calls this for weights of our own, `stock.py` for stock pipelines.

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
from studio.errors import InputError
from studio_diffusion import prompts, vocabulary
from studio_diffusion.samplers import noise_levels
from studio_video import fit
from studio_video.latent import LatentVideo
from studio_video.model import Views
from studio_video.moving import Row
from studio_video.temporal_filter import filtered

LARGEST = 256
"""Pixels of a side: more than the net has met, and as many as a CPU has patience for."""
WINDOW, OVERLAP = 64, 16
"""Frames of a pass, and how many of them two neighbours share, where a clip is longer than a pass."""
MEMORY = 4
"""Frames of a clip that are shown to the net to go on from."""
UNLEARNT = "`factorised` is fast, but `studio train video` does not teach it: shapes break; `window` keeps them"
"""What is told of factorised attention: a net that learnt with full attention makes blots with it."""
LOWEST, HIGHEST = 0.3, 0.75
"""Noise levels of the last steadying step and of the first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoising(studio.State):
    """A clip on its way out of noise. Latents and token states are on the model's device, the rest on the CPU.

    Attributes:
        x: (T, C, h, w) float32 latents, clean at the frames that are `given` (T,).
        x0_before: the clean latents as seen at the step before, or None at the first.
        times: (T,) the part of the movement that is over at each frame.
        text, negative: (n, W) token states of the prompt and of what to keep away from.
        levels: noise levels, `steps + 1` numbers falling to 0.
        before, after: uint8 (n, H, W, 3), frames that are kept as they are at the beginning and the end.
        hidden: frames of `x` at its beginning that stand for some of `before`.
        attention: the kind of `Views`.
        rng: what steadying steps draw from.
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
        """Clips of any shapes share a step, if they see alike and their sizes are within a factor of two.

        What a step takes is learned for a key and a width: clips of very unlike sizes would tell nothing of each other.
        """
        frames, _, height, width = self.x.shape
        return self.attention, (frames * height * width).bit_length()


def start(model: LatentVideo, inputs: Any, rng: studio.Rng) -> Denoising:
    """Encode the texts and what is given, and draw the noise. Raises InputError for a size that the net has not met."""
    if max(inputs.sides) > LARGEST:
        raise InputError("size", f"`size` is {inputs.size}; this model makes sides of up to {LARGEST} pixels")
    given = fit.given(inputs, MEMORY)
    frames = inputs.frames + given.hidden + inputs.loop
    x = model.here(_noise(model.latent_shape(frames, *inputs.sides), rng.torch, inputs.loop))
    still = torch.zeros(frames, dtype=torch.bool)
    for at, pixels in given.frames.items():
        still[at] = True
        x[at] = model.encode(pixels[None])[0]
    text, negative = model.texts.read([inputs.prompt, inputs.negative])
    unlearnt = (UNLEARNT,) if inputs.attention == "factorised" else ()
    told = (*model.texts.notices(inputs.prompt, "prompt"), *model.texts.notices(inputs.negative, "negative prompt"))
    untaught = vocabulary.notices(model.vocabulary, prompts.read(inputs.prompt).text, model.nearest)
    before, after = (torch.from_numpy(each.copy()) for each in (given.before, given.after))
    return Denoising(
        steps=inputs.steps, notices=(*given.notices, *told, *untaught, *unlearnt), x=x, x0_before=None,
        times=torch.linspace(0, 1, frames) if frames > 1 else torch.tensor([0.5]),
        given=still, text=text, negative=negative, levels=levels(inputs.steps, frames), rng=rng,
        guidance=inputs.guidance, sampler=inputs.sampler, loop=inputs.loop, attention=inputs.attention,
        fps=inputs.extend.fps if inputs.extend else inputs.fps, before=before, after=after, hidden=given.hidden,
    )  # fmt: skip


def step(model: LatentVideo, states: Sequence[Denoising]) -> list[Denoising]:
    """One step for all states together, as one packed row."""
    moved = model.step([_row(state) for state in states], Views(states[0].attention))
    return [replace(a, position=a.position + 1, x=x, x0_before=x0) for a, (x, x0) in zip(states, moved, strict=True)]


def _row(a: Denoising) -> Row:
    """What a state's next step is made of.

    Denoising leaves grain that is another in each frame. Steadying steps put fresh noise on what is seen, look
    again without guidance, and keep a mean of what they see, later ones weighing more.
    """
    steady = steadying(a.steps, len(a.x))
    turn = a.position - (a.steps - steady)  # among the steadying steps; below 0 while denoising
    next_steadies = -1 <= turn < steady - 1
    return Row(
        x=a.x, x0_before=a.x0_before, times=a.times, given=a.given, text=a.text, negative=a.negative,
        guidance=a.guidance if turn < 0 else 1.0, s=a.levels[a.position], s_next=a.levels[a.position + 1],
        s_before=a.levels[a.position - 1] if a.position else 0.0, sampler=a.sampler, loop=a.loop,
        windows=windows(len(a.x)), weight=2 / (2 + max(turn, 0)),
        noise=_noise(a.x.shape, a.rng.fork(a.position).torch, a.loop) if next_steadies else None,
    )  # fmt: skip


def _noise(shape: Sequence[int], generator: torch.Generator, loop: bool) -> Tensor:
    """Noise for latents (T, C, h, w), whose last frame is the first again in a loop."""
    made = torch.randn(tuple(shape), generator=generator)
    if loop:
        made[-1] = made[0]
    return made


def finish(model: LatentVideo, state: Denoising) -> studio.Video:
    """Decode the latents, take flicker away, and put what was given in its place.

    What was given takes no part in the filter: a picture larger than what is made of it would shine through.
    """
    last = len(state.x) - state.loop - len(state.after)
    made = model.decode(state.x[state.hidden or len(state.before) : last])
    made = filtered(made, loop=state.loop and not len(state.before))
    return studio.Video(torch.cat([state.before, made, state.after]).numpy(), state.fps)


def preview(model: LatentVideo, state: Denoising) -> studio.Image | None:
    """The frame half-way, as the model now takes it to be."""
    if state.x0_before is None:
        return None
    middle = len(state.x0_before) // 2
    return studio.Image.from_array(model.decode(state.x0_before[middle : middle + 1])[0].numpy())


def facts(model: LatentVideo, inputs: Any) -> dict[str, Any]:
    """The noise schedule, the sampler, and which patches saw each other."""
    frames = inputs.frames + (MEMORY if inputs.extend else 0)  # those that are shown make one a clip too
    steadied = steadying(inputs.steps, frames)
    schedule = {"kind": "rectified flow", "shift": shift(frames), "steps": inputs.steps, "steadying": steadied}
    return {"noise_schedule": schedule, "sampler": inputs.sampler, "views": inputs.attention}


def windows(frames: int) -> tuple[tuple[int, int], ...]:
    """The passes of a clip: (first, last + 1) of each, evenly spread, neighbours sharing `OVERLAP` frames or more."""
    if frames <= WINDOW:
        return ((0, frames),)
    count = -(-(frames - OVERLAP) // (WINDOW - OVERLAP))
    starts = [round(i * (frames - WINDOW) / (count - 1)) for i in range(count)]
    return tuple((start, start + WINDOW) for start in starts)


def steadying(steps: int, frames: int) -> int:
    """How many of a clip's steps steady it: the last third. A picture has nothing to be steady with."""
    return steps // 3 if frames > 1 else 0


def levels(steps: int, frames: int) -> tuple[float, ...]:
    """The noise level at the beginning of each step, and 0."""
    last = steadying(steps, frames)
    falling = np.linspace(LOWEST, HIGHEST, last)[::-1].tolist()  # if there is one alone, the lowest
    return (*noise_levels(steps, shift(frames))[: steps - last], *falling, 0.0)


def shift(frames: int) -> float:
    """Frames tell of one another, so a clip needs more steps at high noise than a picture (Esser et al. 2024)."""
    return 1.0 if frames == 1 else 2.0
