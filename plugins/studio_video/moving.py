"""A denoising step of clips once the net has answered: guidance, windows, the sampler, what is given.

All frames are moved together, whichever clip they belong to, so that more clips need no more operators. What differs
among them (noise levels, guidance, weights) is a column with a number for each frame, or for each piece of a frame
where these have unlike sizes. Knows nothing of the net.

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
from studio_diffusion.rows import columns
from studio_diffusion.samplers import SAMPLERS, Level, Move, Past


@dataclass(frozen=True)
class Row:
    """One request in a step. Tensors are on the model's device, but for `times` and `given`; others are copied there.

    Attributes:
        x: (T, C, h, w) float32 latents at level `s`, clean where `given`.
        x0_before: the same as they were taken to be at the step before, or None at the first.
        times, given: (T,) on the CPU, the part of the movement that is over, and which frames are given.
        text, negative: (n, W) token states, without padding.
        guidance: scale of classifier-free guidance; 1 is none and costs half.
        s, s_next, s_before: noise levels in [0, 1); `s_before` is 0 at the first step.
        sampler: a key of `SAMPLERS`.
        loop: whether the last frame is the first one again.
        windows: the frames of each pass, of which neighbours overlap; the whole clip in one where it is short.
        weight: of what is seen now, in a mean with `x0_before`.
        noise: (T, C, h, w) on the CPU, to put on that mean for `s_next`, in place of a step of the sampler.
        pieces: of a frame, where `T` counts these.
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
        """What the net is told: the prompt and, if the row is guided, what to keep away from."""
        return [self.text, self.negative] if self.guidance > 1 else [self.text]

    def cut(self, size: int) -> Row:
        """The same with frames cut into pieces (size, 1, 1)."""
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
    """The frames (F, …) of all rows, one row's after another's."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.spans = list(pairwise(accumulate((len(row.x) for row in rows), initial=0)))

    def numbers(self, of: Sequence[float], rows: Sequence[int] | None = None) -> list[float]:
        """A row's number for each of its frames."""
        rows = range(len(self.rows)) if rows is None else rows
        return [number for number, i in zip(of, rows, strict=True) for _ in range(*self.spans[i])]

    def of(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """The frames of some rows, one or more, among those of all."""
        if len(rows) == len(self.rows):
            return x
        return torch.cat([x[slice(*self.spans[i])] for i in rows])

    def replaced(self, x: Tensor, rows: Sequence[int], frames: Tensor) -> Tensor:
        """All frames, with others for those of some rows."""
        if len(rows) == len(self.rows):
            return frames
        others = dict(zip(rows, frames.split([len(self.rows[i].x) for i in rows]), strict=True))
        return torch.cat([others.get(i, x[slice(*span)]) for i, span in enumerate(self.spans)])


def moved(
    rows: Sequence[Row], answers: Sequence[Sequence[Sequence[Tensor]]], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """(latents at `s_next`, present x0) of each row, both (T, C, h, w).

    `answers` are the net's velocities for each row, by text and pass.
    """
    shapes = [row.x.shape for row in rows]
    if len({shape[1:] for shape in shapes}) == 1:
        return _moved(rows, answers, device)
    size = math.gcd(*(math.prod(shape[1:]) for shape in shapes))
    pieces = [[[_cut(part, size) for part in text] for text in each] for each in answers]
    made = _moved([row.cut(size) for row in rows], pieces, device)
    return [(x.view(shape), x0.view(shape)) for (x, x0), shape in zip(made, shapes, strict=True)]


def _moved(
    rows: Sequence[Row], answers: Sequence[Sequence[Sequence[Tensor]]], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The same; frames of all rows, or their pieces, have one size."""
    frames = _Frames(rows)
    guided = [i for i, row in enumerate(rows) if row.guidance > 1]
    s, s_next, s_before, weight, still, scale = columns(
        device,
        *(frames.numbers([getattr(row, name) for row in rows]) for name in ("s", "s_next", "s_before", "weight")),
        torch.cat([row.given for row in rows]).tolist(), frames.numbers([rows[i].guidance for i in guided], guided),
    )  # fmt: skip
    still = still > 0
    x = torch.cat([devices.upload(row.x, device) for row in rows])  # (F, C, h, w)
    ways = [(i, 0) for i in range(len(rows))] + [(i, 1) for i in guided]
    parts = [part for i, text in ways for part in answers[i][text]]
    v = joined([rows[i].passes for i, _ in ways], parts, [rows[i].pieces for i, _ in ways])
    if guided:
        v, away = v[: len(x)], v[len(x) :]
        v = frames.replaced(v, guided, away + scale * (frames.of(v, guided) - away))
    for row, (first, last) in zip(rows, frames.spans, strict=True):
        if row.loop:
            begin, end = slice(first, first + row.pieces), slice(last - row.pieces, last)
            v[begin] = v[end] = (v[begin] + v[end]) / 2
    x0 = torch.where(still, x, x - s * v)
    past = torch.cat([
        x0[slice(*span)] if row.x0_before is None else devices.upload(row.x0_before, device)
        for row, span in zip(rows, frames.spans, strict=True)
    ])  # fmt: skip
    x0 = torch.lerp(past, x0, weight)  # at a row's first step that is x0
    move = Move(x, x0, Level.flow(s), Level.flow(s_next), Past(Level.flow(s_before), past, x))
    after = _after(frames, move)
    made = torch.where(still, x, after)
    pairs = [(made[slice(*span)], x0[slice(*span)]) for span in frames.spans]
    if len(rows) == 1:
        return pairs
    return [(x.clone(), x0.clone()) for x, x0 in pairs]  # a part of a shared tensor would keep the whole batch alive


def _after(frames: _Frames, move: Move) -> Tensor:
    """The step of each row's sampler, a row of the sampler for each frame; or fresh noise."""
    noisy = [i for i, row in enumerate(frames.rows) if row.noise is not None]
    made = move.x0
    for name in {row.sampler for row in frames.rows if row.noise is None}:
        mine = [i for i, row in enumerate(frames.rows) if row.sampler == name and row.noise is None]
        made = frames.replaced(made, mine, frames.of(SAMPLERS[name](move), mine))
    if noisy:
        noise = devices.upload(torch.cat([row.noise for row in frames.rows if row.noise is not None]), move.x.device)
        fresh = torch.lerp(frames.of(move.x0, noisy), noise, frames.of(move.next.sigma, noisy))
        made = frames.replaced(made, noisy, fresh)
    return made


def joined(passes: Sequence[Sequence[tuple[int, int]]], parts: Sequence[Tensor], pieces: Sequence[int]) -> Tensor:
    """The velocities of clips, one after another, from those of their passes: where these overlap the weight goes over
    from one to the next (MultiDiffusion, Bar-Tal et al. 2023, in time). Each clip counts so many `pieces` a frame.
    """
    said = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if all(len(each) == 1 for each in passes):
        return said
    # Of each frame of a pass: which frame it is of, how much it weighs, and how many passes have that frame before it.
    begin = 0
    targets: list[int] = []
    weights: list[Tensor] = []
    turns: list[int] = []
    for each, count in zip(passes, pieces, strict=True):
        seen = [0] * max(last for _, last in each)
        for first, last in each:
            ramp = (torch.arange((last - first) // count) + 1.0).repeat_interleave(count)
            weights.append(torch.ones(last - first) if len(each) == 1 else torch.minimum(ramp, ramp.flip(0)))
            targets += range(begin + first, begin + last)
            turns += seen[first:last]
            seen[first:last] = [turn + 1 for turn in seen[first:last]]
        begin += len(seen)
    weight, target, turn = torch.cat(weights), torch.tensor(targets), torch.tensor(turns)
    sums = torch.zeros(begin).index_add_(0, target, weight)
    # One pass after another is added to a frame, so that sums have one order on every device.
    order = [torch.nonzero(turn == i).flatten() for i in range(int(turn.max()) + 1)]
    numbers = columns(said.device, weight.tolist(), sums.tolist())
    places = devices.device(str(said.device)).upload_all([each for i in order for each in (i, target[i])])
    said = said * numbers[0]
    total = torch.zeros(begin, *said.shape[1:], device=said.device)
    for source, to in zip(places[::2], places[1::2], strict=True):
        total.index_add_(0, to, said[source])
    return total / numbers[1]
