"""Motion-compensated temporal filtering (Dubois and Sabri 1984), against flicker.

Outlines and grain differ a little between generated frames. Each frame is averaged with its two neighbours, warped to
it by optical flow and weighted by similarity, so that appearing, disappearing and hidden parts do not smear. Repeating
this adds more distant frames with falling weights.

Try it: `filtered(frames)` of uint8 (T, H, W, 3)
"""

from __future__ import annotations

import torch
from torch import Tensor

from studio_video.optical_flow import around, flow, warped

_REPEATS = 4  # repetitions, so the number of frames on either side that affect a frame
_BATCH = 16  # frames per batch, so that memory does not grow with the length of a clip
_SIMILAR = 0.15  # a difference, of the range from black to white, with the weight 1 / e
_AROUND = 2  # radius in pixels over which differences are averaged


def filtered(frames: Tensor, loop: bool = False) -> Tensor:
    """The clip without flicker, uint8 (T, H, W, 3) as `frames`, whose sides are multiples of 8.

    In a `loop` the first frame and the last are neighbours.
    """
    count, ends = len(frames), _REPEATS if loop else 0
    made = torch.empty_like(frames)
    for first in range(0, count, _BATCH):
        last = min(first + _BATCH, count)
        begin = max(first - _REPEATS, -ends)
        near = torch.arange(begin, min(last + _REPEATS, count + ends)) % count
        x = _filtered(frames[near].permute(0, 3, 1, 2).float().div(255))
        x = x[first - begin :][: last - first].mul(255).round().clamp(0, 255)
        made[first:last] = x.byte().permute(0, 2, 3, 1)
    return made


def _filtered(x: Tensor) -> Tensor:
    """The same of float32 (T, 3, H, W) in [0, 1]."""
    if len(x) < 2:
        return x
    to_next, to_previous = flow(x[:-1], x[1:]), flow(x[1:], x[:-1])
    for _ in range(_REPEATS):
        total, weight = x.clone(), torch.ones_like(x[:, :1])
        _join(total[:-1], weight[:-1], x[:-1], warped(x[1:], to_next))
        _join(total[1:], weight[1:], x[1:], warped(x[:-1], to_previous))
        x = total / weight
    return x


def _join(total: Tensor, weight: Tensor, frames: Tensor, warped_frames: Tensor) -> None:
    """Add the warped neighbours of `frames`, (P, 3, H, W) each, weighted by their similarity."""
    difference = around((frames - warped_frames).abs().mean(1, keepdim=True), _AROUND)
    share = torch.exp(-((difference / _SIMILAR) ** 2))
    total += share * warped_frames
    weight += share
