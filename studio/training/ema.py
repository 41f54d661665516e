"""An exponential moving average of a module's weights (Polyak and Juditsky 1992), warmed up."""

from __future__ import annotations

import copy

import torch


class Ema:
    """An EMA of a model's parameters, in `module`; buffers are copied.

    The decay at update n is `min(decay, (1 + n) / (10 + n))`: the first updates follow the model closely.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999) -> None:
        """Start from a copy of `model`. `decay` is in [0, 1): closer to 1 averages over more updates."""
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Update the average with the model's current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine = [p.data for p in self.module.parameters()]
        torch._foreach_lerp_(mine, [p.detach() for p in model.parameters()], 1 - decay)
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
