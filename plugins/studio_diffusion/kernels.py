"""Route the attention of a latent diffusion model's components through `studio.attention`.

Try it: ``studio image "a red apple" --json``; the recipe names the backends under `attention`
"""

from __future__ import annotations

from torch import nn

from studio.attention.routes import diffusers, transformers


def use_attend(text_encoder: nn.Module, *others: nn.Module) -> None:
    """Let these modules call `attend`, so that recipes name the attention backends."""
    transformers.use(text_encoder)
    for module in others:
        diffusers.use(module)
