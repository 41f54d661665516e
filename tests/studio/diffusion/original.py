"""Tiny checkpoints under the names of the original trainers' code, made from pipelines of diffusers.

Only for the tiny configs of whole.py: two levels with one layer each.
"""

from __future__ import annotations

from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET = {
    "conv_in.": "input_blocks.0.0.", "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.", "down_blocks.1.resnets.0.": "input_blocks.3.0.",
    "down_blocks.1.attentions.0.": "input_blocks.3.1.", "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.", "up_blocks.0.attentions.0.": "output_blocks.0.1.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.", "up_blocks.0.attentions.1.": "output_blocks.1.1.",
    "up_blocks.0.upsamplers.0.conv.": "output_blocks.1.2.conv.", "up_blocks.1.resnets.0.": "output_blocks.2.0.",
    "up_blocks.1.resnets.1.": "output_blocks.3.0.", "time_embedding.linear_1.": "time_embed.0.",
    "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.",
    "time_embedding.linear_2.": "time_embed.2.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
}  # fmt: skip
_VAE = {
    "conv_norm_out.": "norm_out.", "mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.": "mid.attn_1.", "conv_shortcut.": "nin_shortcut.", "group_norm.": "norm.",
    "down_blocks.0.downsamplers.0.": "down.0.downsample.", "up_blocks.0.upsamplers.0.": "up.1.upsample.",
}  # fmt: skip


def unet(state: Tensors) -> Tensors:
    """A U-Net of the latent diffusion code, with its prefix."""
    made = {}
    for name, tensor in state.items():
        start = next(each for each in _UNET if name.startswith(each))
        rest = name.removeprefix(start)
        layer, _, leaf = rest.rpartition(".")
        made[f"model.diffusion_model.{_UNET[start]}{_RESNET.get(layer, layer)}{'.' if layer else ''}{leaf}"] = tensor
    return made


def vae(state: Tensors) -> Tensors:
    """A VAE of the latent diffusion code, with its prefix; its attention is by convolutions of one pixel."""
    made = {}
    for stored, tensor in state.items():
        name = stored
        for new, old in _VAE.items():
            name = name.replace(new, old)
        for i in range(2):
            name = name.replace(f"down_blocks.{i}.resnets.", f"down.{i}.block.")
            name = name.replace(f"up_blocks.{i}.resnets.", f"up.{1 - i}.block.")
        is_attention = ".attn_1." in name and ".norm." not in name
        for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.") if is_attention else name
        made[f"first_stage_model.{name}"] = tensor[:, :, None, None] if is_attention and tensor.ndim == 2 else tensor
    return made


def stable_diffusion(pipe: Any) -> Tensors:
    """A whole Stable Diffusion 1 in one file."""
    text = {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": each
            for name, each in pipe.text_encoder.state_dict().items()}  # fmt: skip
    made = unet(pipe.unet.state_dict()) | vae(pipe.vae.state_dict()) | text
    return {name: each.contiguous() for name, each in made.items()} | {"model_ema.decay": torch.zeros(1)}


def stable_diffusion_xl(pipe: Any) -> Tensors:
    """A whole Stable Diffusion XL in one file."""
    first = {f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}": each
             for name, each in pipe.text_encoder.state_dict().items()}  # fmt: skip
    made = unet(pipe.unet.state_dict()) | vae(pipe.vae.state_dict()) | first
    made |= open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    return {name: each.contiguous().clone() for name, each in made.items()}


def open_clip(state: Tensors, prefix: str) -> Tensors:
    """A text encoder of OpenCLIP."""
    start, layer = "text_model.", "text_model.encoder.layers."
    made = {
        "positional_embedding": state[f"{start}embeddings.position_embedding.weight"],
        "token_embedding.weight": state[f"{start}embeddings.token_embedding.weight"],
        "ln_final.weight": state[f"{start}final_layer_norm.weight"],
        "ln_final.bias": state[f"{start}final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    for i in range(2):
        for leaf in ("weight", "bias"):
            made |= {f"transformer.resblocks.{i}.{new}.{leaf}": state[f"{layer}{i}.{old}.{leaf}"]
                     for old, new in names.items()}  # fmt: skip
            made[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(
                [state[f"{layer}{i}.self_attn.{each}_proj.{leaf}"] for each in "qkv"]
            )
    return {f"{prefix}{name}": each for name, each in made.items()}


def flux(state: Tensors) -> Tensors:
    """A FLUX transformer with one block of each kind, as its authors' code has it."""
    names = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "context_embedder": "txt_in", "x_embedder": "img_in", "proj_out": "final_layer.linear",
        "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
        "transformer_blocks.0.norm1_context.linear": "double_blocks.0.txt_mod.lin",
        "transformer_blocks.0.ff.net.0.proj": "double_blocks.0.img_mlp.0",
        "transformer_blocks.0.ff.net.2": "double_blocks.0.img_mlp.2",
        "transformer_blocks.0.ff_context.net.0.proj": "double_blocks.0.txt_mlp.0",
        "transformer_blocks.0.ff_context.net.2": "double_blocks.0.txt_mlp.2",
        "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
        "transformer_blocks.0.attn.to_add_out": "double_blocks.0.txt_attn.proj",
        "single_transformer_blocks.0.norm.linear": "single_blocks.0.modulation.lin",
        "single_transformer_blocks.0.proj_out": "single_blocks.0.linear2",
    }  # fmt: skip
    made = {f"{new}.{leaf}": state[f"{old}.{leaf}"] for old, new in names.items() for leaf in ("weight", "bias")}
    norms = {"transformer_blocks.0.attn.norm_q": "double_blocks.0.img_attn.norm.query_norm",
             "transformer_blocks.0.attn.norm_k": "double_blocks.0.img_attn.norm.key_norm",
             "transformer_blocks.0.attn.norm_added_q": "double_blocks.0.txt_attn.norm.query_norm",
             "transformer_blocks.0.attn.norm_added_k": "double_blocks.0.txt_attn.norm.key_norm",
             "single_transformer_blocks.0.attn.norm_q": "single_blocks.0.norm.query_norm",
             "single_transformer_blocks.0.attn.norm_k": "single_blocks.0.norm.key_norm"}  # fmt: skip
    made |= {f"{new}.scale": state[f"{old}.weight"] for old, new in norms.items()}
    double, single = "transformer_blocks.0.attn.", "single_transformer_blocks.0.attn."
    for leaf in ("weight", "bias"):
        made[f"double_blocks.0.img_attn.qkv.{leaf}"] = torch.cat([state[f"{double}to_{x}.{leaf}"] for x in "qkv"])
        made[f"double_blocks.0.txt_attn.qkv.{leaf}"] = torch.cat([state[f"{double}add_{x}_proj.{leaf}"] for x in "qkv"])
        mlp = state[f"single_transformer_blocks.0.proj_mlp.{leaf}"]
        made[f"single_blocks.0.linear1.{leaf}"] = torch.cat([*(state[f"{single}to_{x}.{leaf}"] for x in "qkv"), mlp])
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    return {name: each.contiguous().clone() for name, each in made.items()}
