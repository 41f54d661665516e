"""The attention of a latent diffusion model's parts: all of it goes through `studio.attention`.

Try it: ``studio image "a red apple" --json``, and look for `attention` among the recipe's facts
"""

from __future__ import annotations

from torch import nn

from studio.attention.routes import diffusers, transformers


def on_attend(text_encoder: nn.Module, *others: nn.Module) -> None:
    """Let the parts ask `attend`, so that whoever runs them says which backends serve."""
    transformers.use(text_encoder)
    for module in others:
        diffusers.use(module)
