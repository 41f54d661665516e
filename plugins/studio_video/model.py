"""The video model: a diffusion transformer on spacetime patches (Peebles and Xie 2023; Brooks et al. 2024, "Sora").

Clips are latents (T, C, H, W) of the image starter's VAE; a picture is a clip of one frame. Each frame is split into
patches of 2x2 latents, the patches of all clips are packed into one sequence (packing.py), and the network predicts the
velocity v = e - x_0 of rectified flow (Liu et al. 2022) for each. It is conditioned on:

- **positions**: rotary position embedding of (t, h, w) in attention, and a sinusoidal embedding of the position in the
  picture and in the clip, added to the input;
- **noise levels**: adaLN-zero on the level of each frame. A frame of level 0 is a conditioning frame, which gives
  image-to-video, the continuation of a clip, and interpolation between two pictures;
- **the text**: cross-attention to the states of the CLIP text encoder, whose last state also joins adaLN.

Attention is full in space and time, or in windows (`AttentionPattern`), with the same weights.

Try it: `VideoTransformer(VideoConfig())(pack([VideoSample(torch.randn(4, 8, 16, 16), ...)], VideoConfig()))`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.attention import Blocks, attend
from studio_video.packing import FREQUENCIES, FULL, PATCH, AttentionPattern, Packed, VideoSample, joined


@dataclass(frozen=True)
class VideoConfig:
    """The sizes of the network. `head_dim` is a multiple of 8, `channels` the VAE's, `text` the text width."""

    width: int = 256
    depth: int = 6
    head_dim: int = 64
    mlp: int = 1024
    channels: int = 8
    text: int = 192

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.width // self.head_dim

    def as_dict(self) -> dict[str, int]:
        """The sizes by name, for JSON."""
        return asdict(self)


def _qk_norm(x: Tensor, gain: Tensor) -> Tensor:
    """QK norm: RMS norm of each head (N, H, D), times its gain (Henry et al. 2020)."""
    return F.rms_norm(x, x.shape[-1:]) * gain.to(x.dtype)


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary position embedding to heads (N, H, D)."""
    cos, sin = cos_sin
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def timestep_embedding(s: Tensor, count: int) -> Tensor:
    """Sinusoidal embedding (F, count) of the timesteps 1000 s of noise levels (F,) (Vaswani et al. 2017)."""
    angles = 1000 * s[:, None] * torch.exp(-math.log(10_000) * torch.arange(count // 2, device=s.device) / (count // 2))
    return torch.cat([angles.cos(), angles.sin()], -1)


class SelfAttention(nn.Module):
    """Attention of patches to patches of their clip, with QK norm and rotary position embedding."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.gain = nn.Parameter(torch.ones(2, config.heads, 1))  # of queries and keys
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, packed: Packed, pattern: AttentionPattern, layer: int) -> Tensor:
        """(N, W) to the same; in `window` and `factorised` patterns even and odd layers differ."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).unbind(1)  # (N, H, D) each
        q, k = (rotate(_qk_norm(each, gain), packed.rope_cos_sin) for each, gain in zip((q, k), self.gain, strict=True))
        return self.out(_self_attention(q, k, v, packed, pattern, layer).flatten(1))


def _self_attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed, pattern: AttentionPattern, layer: int) -> Tensor:
    """Attention of all clips in the pattern: (N, H, D)."""
    if pattern.kind == "full":
        bias = Blocks(packed.bounds) if len(packed.grids) > 1 else None
        return attend(q[None], k[None], v[None], bias=bias, backend=pattern.backend)[0]
    local = layer % 2 == 0  # windows, or spatial attention
    if pattern.kind == "window" and not local:
        order, bounds = packed.frame_order(pattern, layer)
        out = attend(*(each[None, order] for each in (q, k, v)), bias=Blocks(bounds), backend=pattern.backend)[0]
        return torch.empty_like(out).index_copy(0, order, out)
    made = []
    for grid, count, first, last in packed.runs():
        part = [each[first:last].unflatten(0, (count, grid[0], -1)) for each in (q, k, v)]  # (clips, t, hw, H, D)
        if pattern.kind == "window":
            out = attend(*(each.flatten(1, 2) for each in part), bias=pattern.bias(grid))
        elif local:
            out = attend(*(each.flatten(0, 1) for each in part))
        else:
            out = attend(*(each.transpose(1, 2).flatten(0, 1) for each in part))
            out = out.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)
        made.append(out.flatten(0, 1))
    return joined(made)


class CrossAttention(nn.Module):
    """Attention of patches to the text encoder states of their clip."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.text, 2 * config.width)
        self.gain = nn.Parameter(torch.ones(2, config.heads, 1))  # of queries and keys
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, packed: Packed, pattern: AttentionPattern) -> Tensor:
        """(N, W) to the same."""
        q = self.q(x).unflatten(-1, (self.config.heads, -1))  # (N, H, D)
        k, v = self.kv(packed.text.to(x.dtype)).unflatten(-1, (2, self.config.heads, -1)).unbind(1)  # (M, H, D)
        q, k = (_qk_norm(each, gain) for each, gain in zip((q, k), self.gain, strict=True))
        bias = Blocks(packed.bounds, packed.ends) if len(packed.grids) > 1 else None
        return self.out(attend(q[None], k[None], v[None], bias=bias, backend=pattern.backend)[0].flatten(1))


class TransformerBlock(nn.Module):
    """A DiT block: self-attention, cross-attention, MLP; the first and last with adaLN-zero by the noise level."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        w = config.width
        self.adaln = nn.Linear(w, 6 * w)
        self.attention, self.text = SelfAttention(config), CrossAttention(config)
        self.norm = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)
        self.norm_text = nn.LayerNorm(w, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(w, config.mlp), nn.GELU("tanh"), nn.Linear(config.mlp, w))

    def forward(self, x: Tensor, c: Tensor, packed: Packed, pattern: AttentionPattern, layer: int) -> Tensor:
        """x (N, W), c (F, W) to (N, W)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            each[packed.frame]
            for each in self.adaln(c).chunk(6, -1)  # (N, W) each
        )
        x = x + gate * self.attention(torch.addcmul(shift, self.norm(x), 1 + scale), packed, pattern, layer)
        x = x + self.text(self.norm_text(x), packed, pattern)
        return x + gate_mlp * self.mlp(torch.addcmul(shift_mlp, self.norm(x), 1 + scale_mlp))


class VideoTransformer(nn.Module):
    """The network: noisy patches to velocities. The starter has 8.9M parameters.

    Modules are named as in the weight files: `level` embeds timesteps, `about` the text, `place` positions.
    """

    def __init__(self, config: VideoConfig) -> None:
        """Fresh weights: every block is the identity at first, and the network predicts 0 (adaLN-zero)."""
        super().__init__()
        self.config = config
        w, patch = config.width, config.channels * PATCH * PATCH
        self.patch, self.place = nn.Linear(patch, w), nn.Linear(6 * FREQUENCIES, w)
        self.level = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
        self.about = nn.Sequential(nn.Linear(config.text, w), nn.SiLU(), nn.Linear(w, w))
        blocks = [TransformerBlock(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)
        self.adaln, self.out = nn.Linear(w, 2 * w), nn.Linear(w, patch)
        for layer in (self.adaln, self.out, *(part for b in blocks for part in (b.adaln, b.text.out))):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, packed: Packed, pattern: AttentionPattern = FULL) -> Tensor:
        """Velocities (N, C * 4) of all patches."""
        dtype = self.patch.weight.dtype
        text = self.about(packed.text[packed.last].to(dtype))  # (clips, W)
        level = self.level(timestep_embedding(packed.levels, self.config.width).to(dtype))  # (F, W)
        c = F.silu(level + text[packed.clip])  # (F, W)
        x = self.patch(packed.patches.to(dtype)) + self.place(packed.position_embedding.to(dtype))  # (N, W)
        for layer, block in enumerate(self.blocks):
            x = block(x, c, packed, pattern, layer)
        shift, scale = (each[packed.frame] for each in self.adaln(c).chunk(2, -1))
        return self.out(torch.addcmul(shift, self.norm(x), 1 + scale))


def pack(clips: Sequence[VideoSample], config: VideoConfig) -> Packed:
    """The clips as one sequence for a network of these sizes."""
    return Packed(clips, config.head_dim)


def build(config: dict[str, Any]) -> VideoTransformer:
    """The network of a `VideoConfig.as_dict`."""
    return VideoTransformer(VideoConfig(**config))
