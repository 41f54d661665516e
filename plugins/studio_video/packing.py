"""Packing: video samples of different lengths and sizes as one sequence of patches, without padding.

Also the attention patterns that say which patches attend to each other.

Try it: `Packed([VideoSample(torch.randn(4, 8, 16, 16), ...)], head_dim=64).patches.shape`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

import torch
from torch import Tensor

from studio import devices
from studio.attention import SpaceTime
from studio.caching import cached_property
from studio.devices.graphs import keep_alive

PATCH = 2  # latents along each side of a patch; frames are not merged in time
FREQUENCIES = 8  # per axis of the position embedding


@dataclass(frozen=True)
class VideoSample:
    """One input of the network: a clip, or a picture, which is a clip of one frame.

    Attributes:
        x: (T, C, H, W) latents with the noise of `levels`; H and W even.
        times: (T,) the position of each frame in the clip, in [0, 1]; 0.5 for a picture. On the CPU.
        levels: (T,) noise levels s in [0, 1]; 0 is a conditioning frame. On the CPU.
        text: (n, W) text encoder states without padding; the last is the end token's.
    """

    x: Tensor
    times: Tensor
    levels: Tensor
    text: Tensor


@dataclass(frozen=True)
class AttentionPattern:
    """Which patches of a clip attend to each other: all (the default), or a subset.

    Attributes:
        kind: `full`; `window`, alternating layers of local windows of (t, h, w) patches that move by whole tiles
            (sliding-tile attention, arXiv:2502.04507), and of groups of frames spread over the clip, which connect its
            ends; `factorised`, alternating layers of spatial and temporal attention.
        window, tile: sides in frames and patches; a side larger than the clip covers all of it.
        run, runs: frames per run, and runs per group.
        backend: the attention backend for everything but windows, or `auto`.
    """

    kind: str = "full"
    window: tuple[int, int, int] = (12, 8, 8)
    tile: tuple[int, int, int] = (4, 8, 8)
    run: int = 4
    runs: int = 4
    backend: str = "auto"

    def bias(self, grid: tuple[int, int, int]) -> SpaceTime | None:
        """The window mask of a clip of (t, h, w) patches; None where a window covers the clip."""
        tile = tuple(min(t, n) for t, n in zip(self.tile, grid, strict=True))
        whole = tuple(-(-n // t) * t for n, t in zip(grid, tile, strict=True))
        window = tuple(min(w // t * t or t, n) for w, t, n in zip(self.window, tile, whole, strict=True))
        return None if window == whole else SpaceTime(grid, window, tile)  # type: ignore[arg-type]

    def frame_groups(self, frames: int, shift: int) -> Tensor:
        """The group of each frame of a clip: (T,), from 0 on. Every n-th run of frames is in the same group.

        n is the smallest number that leaves about `runs` runs per group. Runs start `shift` frames early, so that
        frames separated in one layer are together in another.
        """
        return (torch.arange(frames) + shift) // self.run % -(-frames // (self.run * self.runs))


FULL = AttentionPattern()


class Packed:
    """Samples of different lengths and sizes as one sequence of N patches, with the indices that the network needs.

    Attributes:
        grids: (t, h, w) of each sample, in patches; `bounds` its first patch (cu_seqlens).
        patches: (N, C * 4).
        frame: (N,) the index of each patch's frame among all F frames.
        levels: (F,) noise levels; `clip` (F,) the sample of each frame.
        positions: (N, 3) the time in the clip and the position in the picture of each patch.
        text: (M, W) text encoder states, concatenated; `ends` where each text begins, `last` (samples,) its last state.
    """

    def __init__(self, clips: Sequence[VideoSample], head_dim: int) -> None:
        device = devices.device(str(clips[0].x.device))
        self.grids = [(len(c.x), c.x.shape[2] // PATCH, c.x.shape[3] // PATCH) for c in clips]
        self.bounds = (0, *accumulate(t * h * w for t, h, w in self.grids))
        alike = [[clip.x for clip in run] for _, run in groupby(clips, lambda clip: clip.x.shape[1:])]
        self.patches = joined([patchify(joined(run)) for run in alike])
        self.text = torch.cat([clip.text for clip in clips])
        self.ends = (0, *accumulate(len(clip.text) for clip in clips))
        counts = [h * w for t, h, w in self.grids for _ in range(t)]
        positions = [_positions(clip.times, grid) for clip, grid in zip(clips, self.grids, strict=True)]  # (N, 3)
        self.frame, self.clip, self.levels, self.positions, self.last = device.upload_all([
            torch.repeat_interleave(torch.tensor(counts)),
            torch.repeat_interleave(torch.tensor([t for t, _, _ in self.grids])),
            torch.cat([clip.levels for clip in clips]),
            torch.cat(positions),
            torch.tensor(self.ends[1:]) - 1,
        ])  # fmt: skip
        self.head_dim = head_dim

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors on the device."""
        return self.patches, self.text, self.frame, self.clip, self.levels, self.positions, self.last

    def of(self, *tensors: Tensor) -> Packed:
        """Samples of the same shapes with other `tensors`."""
        made = Packed.__new__(Packed)
        made.grids, made.bounds, made.ends, made.head_dim = self.grids, self.bounds, self.ends, self.head_dim
        made.patches, made.text, made.frame, made.clip, made.levels, made.positions, made.last = tensors
        return made

    @cached_property
    def position_embedding(self) -> Tensor:
        """The position embedding, (N, 6 * 8)."""
        return _position_embedding(self.positions)

    @cached_property
    def rope_cos_sin(self) -> tuple[Tensor, Tensor]:
        """The cosines and sines of rotary position embedding, (N, 1, head_dim / 2) each."""
        return _rope_cos_sin(self.positions, self.head_dim)

    def frame_order(self, pattern: AttentionPattern, shift: int) -> tuple[Tensor, tuple[int, ...]]:
        """All patches (N,) sorted by `AttentionPattern.frame_groups`, and the bounds of the groups (cu_seqlens)."""
        order, bounds = _frame_order(tuple(self.grids), pattern, shift, str(self.patches.device))
        return keep_alive(order), bounds

    def runs(self) -> Iterator[tuple[tuple[int, int, int], int, int, int]]:
        """(grid, number of samples, first patch, last + 1) of runs of samples with one grid."""
        first = 0
        for grid, run in groupby(self.grids):
            count = len(list(run))
            last = first + count * math.prod(grid)
            yield grid, count, first, last
            first = last

    def unpack(self, patches: Tensor) -> list[Tensor]:
        """Patches (N, C * 4) as the samples' latents (T, C, H, W)."""
        made: list[Tensor] = []
        first = 0
        for (h, w), run in groupby(self.grids, lambda grid: grid[1:]):
            frames = [t for t, _, _ in run]
            last = first + sum(frames) * h * w
            made += unpatchify(patches[first:last], (sum(frames), h, w)).split(frames)
            first = last
        return made


@lru_cache(maxsize=32)
def _frame_order(
    grids: tuple[tuple[int, int, int], ...], pattern: AttentionPattern, shift: int, device: str
) -> tuple[Tensor, tuple[int, ...]]:
    """See `Packed.frame_order`; cached, since every other layer of every step uses them."""
    order: list[Tensor] = []
    counts: list[int] = []
    first = 0
    with torch.inference_mode(False):  # training may use them too
        for grid in grids:
            frames = torch.arange(first, first := first + math.prod(grid)).unflatten(0, (grid[0], -1))
            group = pattern.frame_groups(grid[0], shift)
            groups = [frames[group == each].flatten() for each in group.unique()]
            order += groups
            counts += map(len, groups)
        return devices.upload(torch.cat(order), torch.device(device)), (0, *accumulate(counts))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts concatenated, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def patchify(x: Tensor) -> Tensor:
    """Latents (T, C, H, W) as patches (T * H/2 * W/2, C * 4), row by row."""
    t, c, h, w = x.shape
    x = x.reshape(t, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * PATCH * PATCH)


def unpatchify(patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The reverse: patches of a grid (t, h, w) as latents (t, C, 2h, 2w)."""
    t, h, w = grid
    x = patches.reshape(t, h, w, -1, PATCH, PATCH)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(t, -1, h * PATCH, w * PATCH)


def _positions(times: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(N, 3): time in [0, 1], and y and x from the centre of the picture in units of eight patches."""
    _, h, w = grid
    y, x = ((torch.arange(n, device=times.device) - (n - 1) / 2) / 8 for n in (h, w))
    return torch.stack(torch.meshgrid(times.float(), y, x, indexing="ij"), -1).reshape(-1, 3)


def _position_embedding(positions: Tensor) -> Tensor:
    """Sines and cosines of each axis at 8 frequencies: (N, 48)."""
    frequencies = math.pi * 2.0 ** torch.arange(-2, FREQUENCIES - 2, device=positions.device)
    angles = positions[:, :, None] * frequencies  # (N, 3, 8)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _rope_cos_sin(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al. 2021): a quarter of head_dim for time, the rest for height and width."""
    shares = (head_dim // 8, head_dim // 2 - head_dim // 8 - head_dim * 3 // 16, head_dim * 3 // 16)
    units = (16.0, 8.0, 8.0)  # so that one of sixteen frames, or one patch, is about 1
    angles = torch.cat([
        positions[:, axis, None] * unit * 100.0 ** (-torch.arange(n, device=positions.device) / n)
        for axis, (unit, n) in enumerate(zip(units, shares, strict=True))
    ], -1)[:, None]  # (N, 1, head_dim / 2)  # fmt: skip
    return angles.cos(), angles.sin()
