"""Convert CLIP weights between transformers' `CLIPTextModelWithProjection` (text tower) and open_clip's `CLIP`.

Both give the same embeddings, as the tests check.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection

TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 64, "patch_size": 8, "layers": 6, "width": 192, "head_width": 64},
    "efficientnet": {"image_size": 128, "timm_model_name": "tf_efficientnet_lite0", "timm_proj": "linear"},
}
"""open_clip's configurations of image towers, by name."""

MEAN, STD = 0.5, 0.5
"""Normalisation of pixels in [0, 1] for the image tower."""

_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Names of a layer's modules in open_clip, and in transformers."""


def config(text: Any, vision: dict[str, Any]) -> dict[str, Any]:
    """open_clip's model configuration for a text tower's (`CLIPTextConfig`) and an image tower's (as in `TOWERS`)."""
    return {
        "embed_dim": text.projection_dim,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
            "heads": text.num_attention_heads, "layers": text.num_hidden_layers, "pad_id": text.pad_token_id,
        },
    }  # fmt: skip


def to_open_clip(tower: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    """The tower's weights and its projection under open_clip's names."""
    state = tower.state_dict()
    return text_tower(state) | {"text_projection": state["text_projection.weight"].T.contiguous()}


def text_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' `CLIPTextModel`, with or without its projection, under open_clip's names."""
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    made = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    layers = sum(name.endswith("layer_norm1.weight") for name in state)
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            qkv = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            made[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(qkv)
            for their, our in _NAMES.items():
                made[f"{theirs}.{their}.{kind}"] = state[f"{ours}.{our}.{kind}"]
    return made


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' `CLIPTextModelWithProjection`, of open_clip's text tower and projection."""
    made = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    layers = sum(name.startswith("transformer.") and name.endswith("ln_1.weight") for name in state)
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for part, value in zip("qkv", state[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                made[f"{ours}.self_attn.{part}_proj.{kind}"] = value
            for their, our in _NAMES.items():
                made[f"{ours}.{our}.{kind}"] = state[f"{theirs}.{their}.{kind}"]
    made = {f"text_model.{name}": value.contiguous() for name, value in made.items()}
    return made | {"text_projection.weight": state["text_projection"].T.contiguous()}
