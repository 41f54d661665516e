"""Optical flow without training, coarse to fine.

Block matching on downscaled frames, then subpixel refinement at half size (Lucas and Kanade 1981, coarse to fine as in
Bouguet 2001). The flow is smoothed over 14 pixels, so that grain and rough outlines, which differ between frames,
hardly affect it.

Try it: `flow(a, b)` of frames (P, 3, H, W), then `warped(b, flow)` looks like `a`
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_REACH = 4  # search radius of block matching, in pixels of small frames
_SMALL = 32  # approximate longer side of small frames in pixels
_AROUND_SMALL, _AROUND = 2, 7  # smoothing radii, in small frames and at half size
_ITERATIONS = 3  # of Lucas and Kanade
_STIFF = 1e-3  # added to the squared gradients, so that regions without gradients do not move
_FAINT = 1e-5  # the least weight of regions without gradients


def flow(a: Tensor, b: Tensor) -> Tensor:
    """The flow (P, 2, H, W) in pixels, right and down, from each pixel of `a` to its match in `b`.

    Args:
        a, b: P pairs of frames, float32 (P, C, H, W) in [0, 1], sides multiples of 8.
    """
    longer = max(a.shape[-2:])
    factor = min(8, max(2, 2 ** round(math.log2(longer / _SMALL))))  # of small frames
    found = _match_blocks(F.avg_pool2d(a, factor), F.avg_pool2d(b, factor))
    while factor > 2:
        found, factor = 2 * F.interpolate(found, scale_factor=2, mode="bilinear"), factor // 2
    found = _refine(F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), found)
    return 2 * F.interpolate(found, scale_factor=2, mode="bilinear")


def warped(frames: Tensor, by: Tensor, mode: str = "bicubic") -> Tensor:
    """Frames (P, C, H, W) warped backwards by a flow (P, 2, H, W); borders are replicated."""
    height, width = frames.shape[-2:]
    y, x = (torch.arange(side, device=by.device, dtype=by.dtype) for side in (height, width))
    at = (by[:, 0] + x) * (2 / (width - 1)) - 1, (by[:, 1] + y[:, None]) * (2 / (height - 1)) - 1
    return F.grid_sample(frames, torch.stack(at, -1), mode, "border", align_corners=True)


def around(x: Tensor, reach: int) -> Tensor:
    """A box filter: the mean (P, C, H, W) within `reach` pixels along each axis."""
    wide = 2 * reach + 1
    for pad, side in (((reach + 1, reach, 0, 0), -1), ((0, 0, reach + 1, reach), -2)):
        total = F.pad(x, pad, "replicate").cumsum(side)  # one pass: `avg_pool2d` reads each number `wide` times
        count = x.shape[side]
        x = (total.narrow(side, wide, count) - total.narrow(side, 0, count)) / wide
    return x


def _match_blocks(a: Tensor, b: Tensor) -> Tensor:
    """Block matching in whole pixels; ties go to the smallest motion."""
    height, width = a.shape[-2:]
    steps = [(x, y) for y in range(-_REACH, _REACH + 1) for x in range(-_REACH, _REACH + 1)]
    wide = F.pad(b, (_REACH,) * 4, "replicate")
    apart = [
        (a - wide[..., _REACH + y : _REACH + y + height, _REACH + x : _REACH + x + width]).abs().mean(1)
        for x, y in steps
    ]
    offsets = torch.tensor(steps, device=a.device, dtype=a.dtype)
    cost = around(torch.stack(apart, 1), _AROUND_SMALL) + 1e-4 * offsets.norm(dim=1)[:, None, None]
    return offsets[cost.argmin(1)].permute(0, 3, 1, 2)


def _refine(a: Tensor, b: Tensor, found: Tensor) -> Tensor:
    """Lucas and Kanade's iterations: least squares of the remaining difference of `a` and `b`, by gradients."""
    for _ in range(_ITERATIONS):
        seen = warped(b, found, "bilinear")
        x = F.pad((seen[..., 2:] - seen[..., :-2]) / 2, (1, 1))
        y = F.pad((seen[..., 2:, :] - seen[..., :-2, :]) / 2, (0, 0, 1, 1))
        left = a - seen
        sums = [(p * q).sum(1) for p, q in ((x, x), (x, y), (y, y), (x, left), (y, left))]
        xx, xy, yy, x_left, y_left = around(torch.stack(sums, 1), _AROUND).unbind(1)
        slopes = (xx + yy + _FAINT)[:, None]
        xx, yy = xx + _STIFF, yy + _STIFF
        step = torch.stack([yy * x_left - xy * y_left, xx * y_left - xy * x_left], 1) / (xx * yy - xy * xy)[:, None]
        found = found + step.clamp(-1, 1)
        found = around(found * slopes, _AROUND) / around(slopes, _AROUND)  # regions with gradients fill those without
    return found
