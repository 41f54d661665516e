"""The attention of a latent diffusion model's parts: all of it goes through `studio.attention`.

Try it: ``studio image "a red apple" --json``, and look for `attention` among the recipe's facts
"""

from __future__ import annotations

from torch import nn

from studio.attention import Dispatch, Table
from studio.attention.routes import diffusers, transformers


def on_attend(text_encoder: nn.Module, *others: nn.Module) -> Dispatch:
    """Let the parts ask one dispatch, and return it: it knows afterwards who served."""
    dispatch = Dispatch(table=Table.load())
    transformers.use(text_encoder, dispatch)
    for module in others:
        diffusers.use(module, dispatch)
    return dispatch
