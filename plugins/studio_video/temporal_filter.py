"""The frames of a clip, each a mean along what moves: motion-compensated temporal filtering (Dubois and Sabri 1984).

The net and the VAE draw each frame's outlines and grain a little otherwise, which flickers. What two neighbours show
is brought to where it stands in a frame (`optical_flow`) and joins it, by how much it looks like what is there: what
comes, goes, or is hidden does not smear. Done over again, more distant frames join, each time less.

Try it: `filtered(frames)` of uint8 (T, H, W, 3)
"""

from __future__ import annotations

import torch
from torch import Tensor

from studio_video.optical_flow import around, flow, warped

_TIMES = 4  # how often frames join their neighbours, so how many frames on either side have a part in one
_TOGETHER = 16  # frames that are made at once: memory does not grow with a clip's length
_ALIKE = 0.15  # a neighbour that differs by so much, of all that lies between black and white, weighs 1 / e
_AROUND = 2  # pixels within which the difference is taken


def filtered(frames: Tensor, loop: bool = False) -> Tensor:
    """The clip without flicker, uint8 (T, H, W, 3) as `frames`, whose sides are multiples of 8.

    In a `loop` the first frame and the last are neighbours.
    """
    count, ends = len(frames), _TIMES if loop else 0
    made = torch.empty_like(frames)
    for first in range(0, count, _TOGETHER):
        last = min(first + _TOGETHER, count)
        begin = max(first - _TIMES, -ends)
        near = torch.arange(begin, min(last + _TIMES, count + ends)) % count
        x = _filtered(frames[near].permute(0, 3, 1, 2).float().div(255))
        x = x[first - begin :][: last - first].mul(255).round().clamp(0, 255)
        made[first:last] = x.byte().permute(0, 2, 3, 1)
    return made


def _filtered(x: Tensor) -> Tensor:
    """The same of float32 (T, 3, H, W) in [0, 1]."""
    if len(x) < 2:
        return x
    to_next, to_previous = flow(x[:-1], x[1:]), flow(x[1:], x[:-1])
    for _ in range(_TIMES):
        total, weight = x.clone(), torch.ones_like(x[:, :1])
        _join(total[:-1], weight[:-1], x[:-1], warped(x[1:], to_next))
        _join(total[1:], weight[1:], x[1:], warped(x[:-1], to_previous))
        x = total / weight
    return x


def _join(total: Tensor, weight: Tensor, frames: Tensor, seen: Tensor) -> None:
    """Add what is seen of the neighbours of `frames`, (P, 3, H, W) each, by how much it looks like them."""
    apart = around((frames - seen).abs().mean(1, keepdim=True), _AROUND)
    share = torch.exp(-((apart / _ALIKE) ** 2))
    total += share * seen
    weight += share
