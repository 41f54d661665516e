"""Diffusion transformers for pictures whose text encoders are Qwen or other language models: Qwen-Image, Z-Image …"""

from __future__ import annotations

import sys
from typing import Any

import torch

from .controlnet import awake
from .parts import Arguments, Builder, Given, diffusers, kinds, kl, letters, pipeline, plain_kl
from .stable_diffusion import SIZE


def _flow(name: str, given: Any, network: Any, vae: Any, **parts: Any) -> tuple[Any, Arguments]:
    common = {"transformer": network, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), "vae": vae}
    return pipeline(name, common | parts, given)


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        latents_mean=[0.1] * 4, latents_std=[1.1] * 4)  # fmt: skip


_QWEN = {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4)}  # fmt: skip


def _qwen(name: str, given: Any, /, **parts: Any) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.QwenImageTransformer2DModel(**_QWEN), qwen_vae(), **parts)


def _edit(name: str, given: Any, /) -> tuple[Any, Arguments]:
    """Instruction edits bring each picture to the area that their module asks for, a million pixels; here few."""
    module = sys.modules[getattr(diffusers, name).__module__]
    module.calculate_dimensions = lambda area, ratio: (32, 32) if "Plus" in name else (32, 32, None)
    return _qwen(name, given)


def _qwen_control(name: str, given: Any, /) -> tuple[Any, Arguments]:
    extra = {"extra_condition_channels": 4} if "Inpaint" in name else {}
    return _qwen(name, given, controlnet=awake(diffusers.QwenImageControlNetModel(**_QWEN, **extra)))


def _prompt(draw: Given) -> dict[str, Any]:
    given: dict[str, Any] = {"num_inference_steps": draw.steps, "true_cfg_scale": draw.guidance}
    for sign in ("", "negative_"):
        given[f"{sign}prompt_embeds"] = draw(1, 8, 16)
        given[f"{sign}prompt_embeds_mask"] = torch.ones(1, 8, dtype=torch.int64)
    return given


def _words(draw: Given, width: int = 32) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 16, width), "negative_prompt_embeds": draw(1, 16, width),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


def _lists(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": [draw(8 + draw.steps, 16)], "negative_prompt_embeds": [draw(8, 16)], **SIZE,
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


_Z = {"all_patch_size": (2,), "all_f_patch_size": (1,), "dim": 32, "n_refiner_layers": 1, "n_heads": 2,
      "n_kv_heads": 2}  # fmt: skip


def _z(name: str, given: Any, /, **parts: Any) -> tuple[Any, Arguments]:
    network = diffusers.ZImageTransformer2DModel(
        in_channels=16, n_layers=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32], **_Z)  # fmt: skip
    with torch.no_grad():  # they are made without values
        for token in (network.x_pad_token, network.cap_pad_token):
            token.normal_()
    return _flow(name, given, network, plain_kl(16, (8, 8), norm_num_groups=4), **parts)


def _z_control(name: str, given: Any, /) -> tuple[Any, Arguments]:
    channels = 33 if "Inpaint" in name else 16
    network = awake(diffusers.ZImageControlNetModel(
        control_layers_places=[0, 1], control_refiner_layers_places=[0], control_in_dim=channels, **_Z))  # fmt: skip
    return _z(name, given, controlnet=network)


def _omnigen(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
        vocab_size=64,
        pad_token_id=0,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    return _flow(name, given, network, kl(widths=(8, 8, 8, 8)), scheduler=scheduler, tokenizer=letters())


def _bria(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.BriaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=None, axes_dims_rope=[0, 4, 4])  # fmt: skip
    return _flow(name, given, network, kl(widths=(8,), shift_factor=0))


def _ovis(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.OvisImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8))  # fmt: skip
    return _flow(name, given, network, plain_kl(1))


def _krea(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2), rope_theta=1000.0)  # fmt: skip
    return _flow(name, given, network, qwen_vae(), text_encoder_select_layers=(0, 1, 2))


def _krea_prompt(draw: Given) -> dict[str, Any]:
    given: dict[str, Any] = {"num_inference_steps": draw.steps, "guidance_scale": draw.guidance, **SIZE}
    for sign in ("", "negative_"):
        given[f"{sign}prompt_embeds"] = draw(1, 8, 3, 16)
        given[f"{sign}prompt_embeds_mask"] = torch.ones(1, 8, dtype=torch.bool)
    return given


def _change(draw: Given) -> dict[str, Any]:
    return {"image": draw.image(), "strength": 1.0, **SIZE}


def _paint(draw: Given) -> dict[str, Any]:
    return _change(draw) | {"mask_image": draw.mask()}


FAMILIES: dict[str, dict[str, Builder]] = {
    "Qwen-Image": kinds(_qwen, {
        "QwenImagePipeline": lambda draw: _prompt(draw) | SIZE,
        "QwenImageImg2ImgPipeline": lambda draw: _prompt(draw) | _change(draw),
        "QwenImageInpaintPipeline": lambda draw: _prompt(draw) | _paint(draw),
    }) | kinds(_qwen_control, {
        "QwenImageControlNetPipeline": lambda draw: _prompt(draw) | SIZE | {"control_image": draw.image()},
        "QwenImageControlNetInpaintPipeline":
            lambda draw: _prompt(draw) | SIZE | {"control_image": draw.image(), "control_mask": draw.mask()},
    }) | kinds(_edit, {
        "QwenImageEditPipeline": lambda draw: _prompt(draw) | SIZE | {"image": draw.image()},
        "QwenImageEditPlusPipeline": lambda draw: _prompt(draw) | SIZE | {"image": draw.images(2)},
        "QwenImageEditInpaintPipeline": lambda draw: _prompt(draw) | SIZE | {
            "image": draw.image(), "mask_image": draw.mask(), "strength": 1.0},
    }),
    "Z-Image": kinds(_z, {
        "ZImagePipeline": _lists,
        "ZImageImg2ImgPipeline": lambda draw: _lists(draw) | _change(draw),
        "ZImageInpaintPipeline": lambda draw: _lists(draw) | _paint(draw),
    }) | kinds(_z_control, {
        "ZImageControlNetPipeline": lambda draw: _lists(draw) | {"control_image": draw.image()},
        "ZImageControlNetInpaintPipeline":
            lambda draw: _lists(draw) | {"control_image": draw.image(), "image": draw.image(),
                                         "mask_image": draw.mask()},
    }),
    "OmniGen": kinds(_omnigen, {"OmniGenPipeline": lambda draw: {
        "prompt": draw.text(), "num_inference_steps": draw.steps, "guidance_scale": draw.guidance, **SIZE}}),
    "Bria": kinds(_bria, {"BriaPipeline": lambda draw: _words(draw) | SIZE}),
    "Ovis": kinds(_ovis, {"OvisImagePipeline": lambda draw: _words(draw) | SIZE | {"negative_prompt": None}}),
    "Krea 2": kinds(_krea, {"Krea2Pipeline": _krea_prompt}),
}  # fmt: skip
