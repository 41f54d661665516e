"""Classifier-free guidance (Ho and Salimans 2022), for all diffusion models here: latents, pixels and clips.

Try it: ``classifier_free_guidance(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([[5.0]]))`` is 5
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def classifier_free_guidance(
    cond: Tensor,
    uncond: Tensor,
    scale: Tensor,
    *,
    to_x0: Callable[[Tensor], Tensor] | None = None,
    rescale: Tensor | None = None,
) -> Tensor:
    """uncond + scale * (cond - uncond) for the first rows, which are guided; the other rows unchanged.

    Args:
        cond: (B, …) model outputs with the prompt or label, the guided rows first.
        uncond: (G, …) model outputs of the guided rows with the negative prompt, or without a label; G may be 0.
        scale: the guidance scales, broadcastable to `uncond`.
        to_x0: turns model outputs (B, …) into clean samples x_0, which are then returned; None returns model outputs.
        rescale: (G, 1, …) in [0, 1], how far to bring guided samples back to the contrast of unguided ones; 0 not at
            all.

    Returns (B, …).
    """
    count = len(uncond)
    guided = cond
    if count:
        guided = uncond + scale * (cond[:count] - uncond)
        guided = guided if count == len(cond) else torch.cat([guided, cond[count:]])
    out = guided if to_x0 is None else to_x0(guided)
    if rescale is None:
        return out
    plain = cond if to_x0 is None else to_x0(cond)
    first = torch.where(rescale > 0, rescaled(out[:count], plain[:count], rescale), out[:count])
    return first if count == len(out) else torch.cat([first, out[count:]])


def rescaled(guided: Tensor, cond: Tensor, share: Tensor) -> Tensor:
    """Guided samples (B, …), partly rescaled to the standard deviation of the unguided ones.

    Lin et al. 2023, equations 15 and 16, applied to x_0, whose contrast a high guidance scale inflates. `share` (B, 1,
    …) is the paper's phi: the weight of the rescaled sample.
    """
    dims = tuple(range(1, guided.dim()))
    ratio = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (share * ratio + 1 - share)
