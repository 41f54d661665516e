"""The video model: a diffusion transformer on spacetime patches (Peebles and Xie 2023; Brooks et al. 2024, "Sora").

Clips are latents (T, C, H, W) of the image starter's VAE; a picture is a clip of one frame. Each frame is cut into
patches of 2x2 latents, all patches of all clips lie one after another in one row (`Packed`), and the net predicts the
velocity v = e - x_0 of rectified flow (Liu et al. 2022) for each. What it is told:

- **where** a patch is: rotary positions of (t, h, w) in attention, so that only distances count there, and a sinusoidal
  embedding of the place in the picture and of the part of the clip that is over, added at the entrance;
- **how noisy** its frame is: adaLN-zero on the frame's own level. A frame whose level is 0 is given: this one rule is
  the first-frame condition, the continuation of a clip, and what lies between two pictures;
- **what to show**: cross-attention to the token states of the CLIP text tower, whose last one joins adaLN.

Attention goes through `studio.attention`: full in space and time, or in windows (`Views`), with the same weights.
Knows nothing of the VAE, of text encoders, samplers or the host.

Try it: `VideoTransformer(Shape())(pack([Clip(torch.randn(4, 8, 16, 16), ...)]))`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio import devices
from studio.attention import Blocks, SpaceTime, attend
from studio.caching import cached_property
from studio.devices.graphs import keep_alive

PATCH = 2  # latents along each side of a patch; a frame is never joined with its neighbours
_PLACE = 8  # frequencies an axis of the embedding of places


@dataclass(frozen=True)
class Shape:
    """The net's sizes. `head_dim` is a multiple of 8, `channels` those of the VAE, `text` the text tower's width."""

    width: int = 256
    depth: int = 6
    head_dim: int = 64
    mlp: int = 1024
    channels: int = 8
    text: int = 192

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return self.width // self.head_dim

    def config(self) -> dict[str, int]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Clip:
    """One clip as the net sees it.

    Attributes:
        x: (T, C, H, W) latents, noisy where `levels` says so; H and W even.
        times: (T,) the part of the clip's movement that is over at each frame, in [0, 1]; 0.5 for a picture.
        levels: (T,) noise levels s in [0, 1]; 0 is a frame that is given. Both are on the CPU.
        text: (n, W) token states, the text's own and no padding; the last is that of its end.
    """

    x: Tensor
    times: Tensor
    levels: Tensor
    text: Tensor


@dataclass(frozen=True)
class Views:
    """Which patches attention lets see each other, of the same clip: all (the default), or a part.

    Attributes:
        kind: `full`; `window`, by turns those near, in a box of `window` (t, h, w) patches around each that is moved by
            whole tiles (sliding-tile attention, arXiv:2502.04507), and those of runs of frames all over the clip, so
            that its ends know of each other; `factorised`, by turns those of one frame and those of one place.
        window, tile: sides in frames and patches; a side that is larger than the clip sees all of it.
        run, runs: frames of a run, and how many runs see each other.
        backend: that of `studio.attention` that must serve what is not windowed, or `auto`.
    """

    kind: str = "full"
    window: tuple[int, int, int] = (12, 8, 8)
    tile: tuple[int, int, int] = (4, 8, 8)
    run: int = 4
    runs: int = 4
    backend: str = "auto"

    def bias(self, grid: tuple[int, int, int]) -> SpaceTime | None:
        """The windows of a clip of (t, h, w) patches; None where they would see all."""
        tile = tuple(min(t, n) for t, n in zip(self.tile, grid, strict=True))
        whole = tuple(-(-n // t) * t for n, t in zip(grid, tile, strict=True))
        window = tuple(min(w // t * t or t, n) for w, t, n in zip(self.window, tile, whole, strict=True))
        return None if window == whole else SpaceTime(grid, window, tile)  # type: ignore[arg-type]

    def apart(self, frames: int, shift: int) -> Tensor:
        """Which group each frame of a clip belongs to: (T,), from 0 on. Every n-th run of frames is of the same one.

        n is as small as leaves a group `runs` runs, or parts of one more. Runs begin `shift` frames early, so that
        neighbours which one layer parts are together in another.
        """
        return (torch.arange(frames) + shift) // self.run % -(-frames // (self.run * self.runs))


FULL = Views()


class Packed:
    """Clips of unlike lengths and shapes as one row of patches, with all that follows from their shapes.

    Attributes:
        grids: (t, h, w) of each clip, in patches; `bounds` where each begins among the N patches.
        patches: (N, C * 4); frame: (N,) the frame of all F frames that a patch belongs to.
        levels: (F,); clip: (F,) the clip that a frame belongs to.
        where: (N, 3) the part of the clip that is over, and the place in the picture, of each patch.
        text: (M, W) token states of all texts, one after another; `ends` where each begins, `last` its last one.
    """

    def __init__(self, clips: Sequence[Clip], head_dim: int) -> None:
        place = devices.device(str(clips[0].x.device))
        self.grids = [(len(c.x), c.x.shape[2] // PATCH, c.x.shape[3] // PATCH) for c in clips]
        self.bounds = (0, *accumulate(t * h * w for t, h, w in self.grids))
        alike = [[clip.x for clip in run] for _, run in groupby(clips, lambda clip: clip.x.shape[1:])]
        self.patches = _joined([patchify(_joined(run)) for run in alike])
        self.text = torch.cat([clip.text for clip in clips])
        self.ends = (0, *accumulate(len(clip.text) for clip in clips))
        counts = [h * w for t, h, w in self.grids for _ in range(t)]
        where = [_where(clip.times, grid) for clip, grid in zip(clips, self.grids, strict=True)]  # (N, 3)
        self.frame, self.clip, self.levels, self.where, self.last = place.upload_all([
            torch.repeat_interleave(torch.tensor(counts)),
            torch.repeat_interleave(torch.tensor([t for t, _, _ in self.grids])),
            torch.cat([clip.levels for clip in clips]),
            torch.cat(where),
            torch.tensor(self.ends[1:]) - 1,
        ])  # fmt: skip
        self.head_dim = head_dim

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds on the device."""
        return self.patches, self.text, self.frame, self.clip, self.levels, self.where, self.last

    def of(self, *tensors: Tensor) -> Packed:
        """Clips of the same shapes with other `tensors`."""
        made = Packed.__new__(Packed)
        made.grids, made.bounds, made.ends, made.head_dim = self.grids, self.bounds, self.ends, self.head_dim
        made.patches, made.text, made.frame, made.clip, made.levels, made.where, made.last = tensors
        return made

    @cached_property
    def place(self) -> Tensor:
        """Embedding of places (N, 6 * 8)."""
        return _place(self.where)

    @cached_property
    def turns(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines (N, 1, head_dim / 2) of the rotary positions."""
        return _turns(self.where, self.head_dim)

    def grouped(self, views: Views, shift: int) -> tuple[Tensor, tuple[int, ...]]:
        """All patches (N,) in the order of the groups of `Views.apart`, and where each group begins."""
        order, bounds = _grouped(tuple(self.grids), views, shift, str(self.patches.device))
        return keep_alive(order), bounds

    def runs(self) -> Iterator[tuple[tuple[int, int, int], int, int, int]]:
        """(grid, how many, first patch, last + 1) of neighbouring clips of one grid."""
        first = 0
        for grid, run in groupby(self.grids):
            count = len(list(run))
            last = first + count * math.prod(grid)
            yield grid, count, first, last
            first = last

    def unpack(self, patches: Tensor) -> list[Tensor]:
        """Patches (N, C * 4) as the clips' latents (T, C, H, W)."""
        made: list[Tensor] = []
        first = 0
        for (h, w), run in groupby(self.grids, lambda grid: grid[1:]):
            frames = [t for t, _, _ in run]
            last = first + sum(frames) * h * w
            made += unpatchify(patches[first:last], (sum(frames), h, w)).split(frames)
            first = last
        return made


@lru_cache(maxsize=32)
def _grouped(
    grids: tuple[tuple[int, int, int], ...], views: Views, shift: int, device: str
) -> tuple[Tensor, tuple[int, ...]]:
    """See `Packed.grouped`; the latest are kept, as every step of a clip asks for them in every other layer."""
    order: list[Tensor] = []
    counts: list[int] = []
    first = 0
    with torch.inference_mode(False):  # training may ask for them later
        for grid in grids:
            frames = torch.arange(first, first := first + math.prod(grid)).unflatten(0, (grid[0], -1))
            group = views.apart(grid[0], shift)
            groups = [frames[group == each].flatten() for each in group.unique()]
            order += groups
            counts += map(len, groups)
        return devices.upload(torch.cat(order), torch.device(device)), (0, *accumulate(counts))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after another; a single one as it is."""
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


def _where(times: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(N, 3): the part of the clip that is over, and the patch's place from the middle in units of eight patches."""
    _, h, w = grid
    y, x = ((torch.arange(n, device=times.device) - (n - 1) / 2) / 8 for n in (h, w))
    return torch.stack(torch.meshgrid(times.float(), y, x, indexing="ij"), -1).reshape(-1, 3)


def _place(where: Tensor) -> Tensor:
    """Sines and cosines of each axis at 8 frequencies: (N, 48)."""
    angles = where[:, :, None] * (math.pi * 2.0 ** torch.arange(-2, _PLACE - 2, device=where.device))  # (N, 3, 8)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _turns(where: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Rotary positions (Su et al. 2021): a quarter of a head turns with time (16 a clip), the rest with h and w."""
    shares = (head_dim // 8, head_dim // 2 - head_dim // 8 - head_dim * 3 // 16, head_dim * 3 // 16)
    units = (16.0, 8.0, 8.0)  # a step of one frame of sixteen, or of one patch, is about 1
    angles = torch.cat([
        where[:, axis, None] * unit * 100.0 ** (-torch.arange(n, device=where.device) / n)
        for axis, (unit, n) in enumerate(zip(units, shares, strict=True))
    ], -1)[:, None]  # (N, 1, head_dim / 2)  # fmt: skip
    return angles.cos(), angles.sin()


def _unit(x: Tensor, gain: Tensor) -> Tensor:
    """Each head (N, H, D) brought to length 1 a number, times its gain: scores stay small (Henry et al. 2020)."""
    return F.rms_norm(x, x.shape[-1:]) * gain.to(x.dtype)


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of numbers of each head (N, H, D) by the angles."""
    cos, sin = turns
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def sinusoids(s: Tensor, count: int) -> Tensor:
    """Noise levels (F,) in [0, 1] as (F, count) sines and cosines of 1000 s (Vaswani et al. 2017)."""
    angles = 1000 * s[:, None] * torch.exp(-math.log(10_000) * torch.arange(count // 2, device=s.device) / (count // 2))
    return torch.cat([angles.cos(), angles.sin()], -1)


class Attention(nn.Module):
    """Patches to patches of their clip."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.gain = nn.Parameter(torch.ones(2, shape.heads, 1))  # of queries and keys
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, packed: Packed, views: Views, layer: int) -> Tensor:
        """(N, W) to the same; `layer` says whose turn it is in `window` and `factorised`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.shape.heads, -1)).unbind(1)  # (N, H, D) each
        q, k = (rotate(_unit(each, gain), packed.turns) for each, gain in zip((q, k), self.gain, strict=True))
        return self.out(_see(q, k, v, packed, views, layer).flatten(1))


def _see(q: Tensor, k: Tensor, v: Tensor, packed: Packed, views: Views, layer: int) -> Tensor:
    """Attention of all clips: (N, H, D)."""
    if views.kind == "full":
        bias = Blocks(packed.bounds) if len(packed.grids) > 1 else None
        return attend(q[None], k[None], v[None], bias=bias, backend=views.backend)[0]
    near = layer % 2 == 0  # or of one frame
    if views.kind == "window" and not near:
        order, bounds = packed.grouped(views, layer)
        seen = attend(*(each[None, order] for each in (q, k, v)), bias=Blocks(bounds), backend=views.backend)[0]
        return torch.empty_like(seen).index_copy(0, order, seen)
    made = []
    for grid, count, first, last in packed.runs():
        part = [each[first:last].unflatten(0, (count, grid[0], -1)) for each in (q, k, v)]  # (clips, t, hw, H, D)
        if views.kind == "window":
            out = attend(*(each.flatten(1, 2) for each in part), bias=views.bias(grid))
        elif near:
            out = attend(*(each.flatten(0, 1) for each in part))
        else:
            out = attend(*(each.transpose(1, 2).flatten(0, 1) for each in part))
            out = out.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)
        made.append(out.flatten(0, 1))
    return _joined(made)


class CrossAttention(nn.Module):
    """Patches to the token states of their clip's text."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(shape.text, 2 * shape.width)
        self.gain = nn.Parameter(torch.ones(2, shape.heads, 1))  # of queries and keys
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, packed: Packed, views: Views) -> Tensor:
        """(N, W) to the same."""
        q = self.q(x).unflatten(-1, (self.shape.heads, -1))  # (N, H, D)
        k, v = self.kv(packed.text.to(x.dtype)).unflatten(-1, (2, self.shape.heads, -1)).unbind(1)  # (M, H, D)
        q, k = (_unit(each, gain) for each, gain in zip((q, k), self.gain, strict=True))
        bias = Blocks(packed.bounds, packed.ends) if len(packed.grids) > 1 else None
        return self.out(attend(q[None], k[None], v[None], bias=bias, backend=views.backend)[0].flatten(1))


class Block(nn.Module):
    """Self-attention and MLP, each scaled, shifted and gated by its frame's noise level; the text between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        w = shape.width
        self.adaln = nn.Linear(w, 6 * w)
        self.attention, self.text = Attention(shape), CrossAttention(shape)
        self.norm = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)
        self.norm_text = nn.LayerNorm(w, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(w, shape.mlp), nn.GELU("tanh"), nn.Linear(shape.mlp, w))

    def forward(self, x: Tensor, c: Tensor, packed: Packed, views: Views, layer: int) -> Tensor:
        """x (N, W), c (F, W) to (N, W)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            each[packed.frame]
            for each in self.adaln(c).chunk(6, -1)  # (N, W) each
        )
        x = x + gate * self.attention(torch.addcmul(shift, self.norm(x), 1 + scale), packed, views, layer)
        x = x + self.text(self.norm_text(x), packed, views)
        return x + gate_mlp * self.mlp(torch.addcmul(shift_mlp, self.norm(x), 1 + scale_mlp))


class VideoTransformer(nn.Module):
    """The net: noisy patches to their velocities. The starter's shape has 8.9M parameters."""

    def __init__(self, shape: Shape) -> None:
        """Fresh weights: every block begins as the identity, and the net predicts 0 (adaLN-zero)."""
        super().__init__()
        self.shape = shape
        w, patch = shape.width, shape.channels * PATCH * PATCH
        self.patch, self.place = nn.Linear(patch, w), nn.Linear(6 * _PLACE, w)
        self.level = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
        self.about = nn.Sequential(nn.Linear(shape.text, w), nn.SiLU(), nn.Linear(w, w))
        blocks = [Block(shape) for _ in range(shape.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)
        self.adaln, self.out = nn.Linear(w, 2 * w), nn.Linear(w, patch)
        for layer in (self.adaln, self.out, *(part for b in blocks for part in (b.adaln, b.text.out))):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, packed: Packed, views: Views = FULL) -> Tensor:
        """Velocities (N, C * 4) of all patches."""
        dtype = self.patch.weight.dtype
        about = self.about(packed.text[packed.last].to(dtype))  # (clips, W)
        c = F.silu(self.level(sinusoids(packed.levels, self.shape.width).to(dtype)) + about[packed.clip])  # (F, W)
        x = self.patch(packed.patches.to(dtype)) + self.place(packed.place.to(dtype))  # (N, W)
        for layer, block in enumerate(self.blocks):
            x = block(x, c, packed, views, layer)
        shift, scale = (each[packed.frame] for each in self.adaln(c).chunk(2, -1))
        return self.out(torch.addcmul(shift, self.norm(x), 1 + scale))


def pack(clips: Sequence[Clip], shape: Shape) -> Packed:
    """The clips as one row for a net of that shape. All clips have the shape's channels."""
    return Packed(clips, shape.head_dim)


def build(config: dict[str, Any]) -> VideoTransformer:
    """The net of a `Shape.config`."""
    return VideoTransformer(Shape(**config))
