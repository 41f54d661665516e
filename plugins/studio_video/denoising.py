"""A denoising step of clips after the forward pass: guidance, overlapping windows, the sampler, conditioning frames.

The frames of all clips are one batch, so that more clips need no more operators. Values that differ among them (noise
levels, guidance, weights) are columns with a number per frame, or per piece of a frame where frame sizes differ.

Try it: ``pytest tests/plugins/studio_video/test_video.py``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from studio import devices
from studio.diffusion.guidance import classifier_free_guidance
from studio.diffusion.rows import columns
from studio.diffusion.samplers import SAMPLERS, History, Level, StepInputs


@dataclass(frozen=True)
class VideoRow:
    """One request in a batched denoising step. Tensors on other devices are copied to the model's.

    Attributes:
        x: (T, C, h, w) float32 latents at level `s`, clean where `given`.
        x0_before: the x_0 of the previous step, or None at the first.
        times, given: (T,) on the CPU, the position of each frame in the clip, and whether it is a conditioning frame.
        text, negative: (n, W) text encoder states without padding, of the prompt and of the negative prompt.
        guidance: guidance scale of classifier-free guidance; 1 is off and halves the work.
        s, s_next, s_before: noise levels in [0, 1); `s_before` is 0 at the first step.
        sampler: a key of `SAMPLERS`.
        loop: whether the last frame equals the first.
        windows: the frames (first, last + 1) of each overlapping pass; one for a short clip.
        weight: the weight of the predicted x_0 in a running mean with `x0_before`.
        noise: (T, C, h, w) on the CPU: for temporal refinement, noise added to that mean instead of a sampler step.
        pieces: pieces per frame, if `T` counts pieces.
    """

    x: Tensor
    x0_before: Tensor | None
    times: Tensor
    given: Tensor
    text: Tensor
    negative: Tensor
    guidance: float
    s: float
    s_next: float
    s_before: float
    sampler: str
    loop: bool = False
    windows: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0
    noise: Tensor | None = None
    pieces: int = 1

    @property
    def passes(self) -> tuple[tuple[int, int], ...]:
        """The frames of each pass, one or more."""
        return self.windows or ((0, len(self.x)),)

    @property
    def texts(self) -> list[Tensor]:
        """The text states of the forward pass: the prompt and, if guided, the negative prompt."""
        return [self.text, self.negative] if self.guidance > 1 else [self.text]

    def cut(self, size: int) -> VideoRow:
        """The same row with frames split into pieces (size, 1, 1)."""
        pieces = self.x[0].numel() // size
        x, before, noise = (each if each is None else _cut(each, size) for each in (self.x, self.x0_before, self.noise))
        assert x is not None
        return replace(
            self, x=x, x0_before=before, noise=noise, given=self.given.repeat_interleave(pieces), pieces=pieces,
            windows=tuple((first * pieces, last * pieces) for first, last in self.passes),
        )  # fmt: skip


def _cut(x: Tensor, size: int) -> Tensor:
    return x.reshape(-1, size, 1, 1)


class _Frames:
    """The frames (F, …) of all rows, concatenated."""

    def __init__(self, rows: Sequence[VideoRow]) -> None:
        self.rows = rows
        self.spans = list(pairwise(accumulate((len(row.x) for row in rows), initial=0)))

    def numbers(self, of: Sequence[float], rows: Sequence[int] | None = None) -> list[float]:
        """A row's number, repeated for each of its frames."""
        rows = range(len(self.rows)) if rows is None else rows
        return [number for number, i in zip(of, rows, strict=True) for _ in range(*self.spans[i])]

    def of(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """The frames of some rows, one or more."""
        if len(rows) == len(self.rows):
            return x
        return torch.cat([x[slice(*self.spans[i])] for i in rows])

    def replaced(self, x: Tensor, rows: Sequence[int], frames: Tensor) -> Tensor:
        """All frames, with those of some rows replaced."""
        if len(rows) == len(self.rows):
            return frames
        others = dict(zip(rows, frames.split([len(self.rows[i].x) for i in rows]), strict=True))
        return torch.cat([others.get(i, x[slice(*span)]) for i, span in enumerate(self.spans)])


def step_rows(
    rows: Sequence[VideoRow], velocities: Sequence[Sequence[Sequence[Tensor]]], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """(latents at `s_next`, predicted x_0) of each row, both (T, C, h, w).

    `velocities` are the network's outputs for each row, by text and pass.
    """
    shapes = [row.x.shape for row in rows]
    if len({shape[1:] for shape in shapes}) == 1:
        return _step_rows(rows, velocities, device)
    size = math.gcd(*(math.prod(shape[1:]) for shape in shapes))
    pieces = [[[_cut(part, size) for part in text] for text in each] for each in velocities]
    made = _step_rows([row.cut(size) for row in rows], pieces, device)
    return [(x.view(shape), x0.view(shape)) for (x, x0), shape in zip(made, shapes, strict=True)]


def _step_rows(
    rows: Sequence[VideoRow], velocities: Sequence[Sequence[Sequence[Tensor]]], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The same for frames, or pieces, of one size."""
    frames = _Frames(rows)
    guided = [i for i, row in enumerate(rows) if row.guidance > 1]
    s, s_next, s_before, weight, given, scale = columns(
        device,
        *(frames.numbers([getattr(row, name) for row in rows]) for name in ("s", "s_next", "s_before", "weight")),
        torch.cat([row.given for row in rows]).tolist(), frames.numbers([rows[i].guidance for i in guided], guided),
    )  # fmt: skip
    given = given > 0
    x = torch.cat([devices.upload(row.x, device) for row in rows])  # (F, C, h, w)
    passes = [(i, 0) for i in range(len(rows))] + [(i, 1) for i in guided]
    parts = [part for i, text in passes for part in velocities[i][text]]
    v = merge_windows([rows[i].passes for i, _ in passes], parts, [rows[i].pieces for i, _ in passes])
    if guided:
        v, uncond = v[: len(x)], v[len(x) :]
        v = frames.replaced(v, guided, classifier_free_guidance(frames.of(v, guided), uncond, scale))
    for row, (first, last) in zip(rows, frames.spans, strict=True):
        if row.loop:
            begin, end = slice(first, first + row.pieces), slice(last - row.pieces, last)
            v[begin] = v[end] = (v[begin] + v[end]) / 2
    x0 = torch.where(given, x, x - s * v)
    before = torch.cat([
        x0[slice(*span)] if row.x0_before is None else devices.upload(row.x0_before, device)
        for row, span in zip(rows, frames.spans, strict=True)
    ])  # fmt: skip
    x0 = torch.lerp(before, x0, weight)  # equals x0 at the first step
    inputs = StepInputs(x, x0, Level.flow(s), Level.flow(s_next), History(Level.flow(s_before), before, x))
    made = torch.where(given, x, _next_latents(frames, inputs))
    pairs = [(made[slice(*span)], x0[slice(*span)]) for span in frames.spans]
    if len(rows) == 1:
        return pairs
    return [(x.clone(), x0.clone()) for x, x0 in pairs]  # a view would keep the whole batch in memory


def _next_latents(frames: _Frames, inputs: StepInputs) -> Tensor:
    """Each row's sampler step, with a sampler row per frame; or x_0 with new noise."""
    noisy = [i for i, row in enumerate(frames.rows) if row.noise is not None]
    made = inputs.x0
    for name in {row.sampler for row in frames.rows if row.noise is None}:
        mine = [i for i, row in enumerate(frames.rows) if row.sampler == name and row.noise is None]
        made = frames.replaced(made, mine, frames.of(SAMPLERS[name](inputs), mine))
    if noisy:
        noise = devices.upload(torch.cat([row.noise for row in frames.rows if row.noise is not None]), inputs.x.device)
        fresh = torch.lerp(frames.of(inputs.x0, noisy), noise, frames.of(inputs.next.sigma, noisy))
        made = frames.replaced(made, noisy, fresh)
    return made


def merge_windows(
    passes: Sequence[Sequence[tuple[int, int]]], parts: Sequence[Tensor], pieces: Sequence[int]
) -> Tensor:
    """The velocities of clips, concatenated, from those of their passes, which are blended linearly where they overlap
    (MultiDiffusion, Bar-Tal et al. 2023, in time). `pieces` are those per frame of each clip.
    """
    v = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if all(len(each) == 1 for each in passes):
        return v
    # For each frame of a pass: its index, its weight, and the number of earlier passes with that frame.
    begin = 0
    targets: list[int] = []
    weights: list[Tensor] = []
    orders: list[int] = []
    for each, count in zip(passes, pieces, strict=True):
        seen = [0] * max(last for _, last in each)
        for first, last in each:
            ramp = (torch.arange((last - first) // count) + 1.0).repeat_interleave(count)
            weights.append(torch.ones(last - first) if len(each) == 1 else torch.minimum(ramp, ramp.flip(0)))
            targets += range(begin + first, begin + last)
            orders += seen[first:last]
            seen[first:last] = [order + 1 for order in seen[first:last]]
        begin += len(seen)
    weight, target, rank = torch.cat(weights), torch.tensor(targets), torch.tensor(orders)
    sums = torch.zeros(begin).index_add_(0, target, weight)
    # Passes are added in sequence, so that sums have the same order on every device.
    order = [torch.nonzero(rank == i).flatten() for i in range(int(rank.max()) + 1)]
    numbers = columns(v.device, weight.tolist(), sums.tolist())
    indices = devices.device(str(v.device)).upload_all([each for i in order for each in (i, target[i])])
    v = v * numbers[0]
    total = torch.zeros(begin, *v.shape[1:], device=v.device)
    for source, to in zip(indices[::2], indices[1::2], strict=True):
        total.index_add_(0, to, v[source])
    return total / numbers[1]
