"""ControlNets beside the U-Nets of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import sdxl, stable_diffusion
from .parts import Arguments, Builder, clip_text, diffusers, kinds, kl, pipeline, sdxl_unet, unet
from .stable_diffusion import SIZE


def awake(module: Any) -> Any:
    """The module with weights in place of its zeros, which a new ControlNet has where it touches the denoiser."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d | nn.Linear) and not each.weight.any():
            nn.init.normal_(each.weight, std=0.1)
    return module


def _build(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = unet()
    control = awake(diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16)))
    parts = {"unet": network, "vae": kl(), "scheduler": diffusers.DDIMScheduler(), "controlnet": control,
             "requires_safety_checker": False}  # fmt: skip
    return pipeline(name, parts, given)


def _xl(name: str, given: Any, /, kind: str = "ControlNetModel") -> tuple[Any, Arguments]:
    network = sdxl_unet()
    control = awake(getattr(diffusers, kind).from_unet(network, conditioning_embedding_out_channels=(8, 16)))
    parts = {"unet": network, "vae": kl(), "scheduler": diffusers.EulerDiscreteScheduler(), "controlnet": control,
             "text_encoder_2": clip_text(projected=True), "add_watermarker": False}  # fmt: skip
    return pipeline(name, parts, given)


def _union(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = sdxl_unet()
    control = awake(
        diffusers.ControlNetUnionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=32,
            use_linear_projection=True,
            conditioning_embedding_out_channels=(8, 16),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
            num_trans_channel=16,
            num_trans_head=2,
            num_proj_channel=16,
        )
    )
    parts = {"unet": network, "vae": kl(), "scheduler": diffusers.EulerDiscreteScheduler(), "controlnet": control,
             "text_encoder_2": clip_text(projected=True), "add_watermarker": False}  # fmt: skip
    return pipeline(name, parts, given)


def _xs(name: str, given: Any, /) -> tuple[Any, Arguments]:
    large = "XL" in name
    network = (sdxl_unet if large else unet)(layers_per_block=2)
    control = awake(diffusers.ControlNetXSAdapter.from_unet(
        network, size_ratio=0.5, conditioning_embedding_out_channels=(8, 16), num_attention_heads=2))  # fmt: skip
    parts = {
        "unet": network,
        "vae": kl(),
        "scheduler": diffusers.DDIMScheduler(),
        "controlnet": control,
        "requires_safety_checker": False,
        "add_watermarker": False,
        "text_encoder_2": clip_text(projected=True),
    }
    return pipeline(name, parts, given)


def _change(draw: Any) -> dict[str, Any]:
    return {"image": draw.image(), "control_image": draw.image(), "strength": 1.0}


def _fill(draw: Any) -> dict[str, Any]:
    return _change(draw) | {"mask_image": draw.mask()} | SIZE


FAMILIES: dict[str, dict[str, Builder]] = {
    "ControlNet": kinds(_build, {
        "StableDiffusionControlNetPipeline":
            lambda draw: stable_diffusion.prompt(draw) | SIZE | {"image": draw.image()},
        "StableDiffusionControlNetPAGPipeline":
            lambda draw: stable_diffusion.prompt(draw) | SIZE | {"image": draw.image()},
        "StableDiffusionControlNetPAGInpaintPipeline": lambda draw: stable_diffusion.prompt(draw) | _fill(draw),
        "StableDiffusionControlNetImg2ImgPipeline": lambda draw: stable_diffusion.prompt(draw) | _change(draw),
        "StableDiffusionControlNetInpaintPipeline": lambda draw: stable_diffusion.prompt(draw) | _fill(draw),
    }) | kinds(_xl, {
        "StableDiffusionXLControlNetPipeline": lambda draw: sdxl.prompt(draw) | SIZE | {"image": draw.image()},
        "StableDiffusionXLControlNetPAGPipeline": lambda draw: sdxl.prompt(draw) | SIZE | {"image": draw.image()},
        "StableDiffusionXLControlNetPAGImg2ImgPipeline": lambda draw: sdxl.prompt(draw) | _change(draw),
        "StableDiffusionXLControlNetImg2ImgPipeline": lambda draw: sdxl.prompt(draw) | _change(draw),
        "StableDiffusionXLControlNetInpaintPipeline": lambda draw: sdxl.prompt(draw) | _fill(draw),
    }) | kinds(_union, {
        "StableDiffusionXLControlNetUnionPipeline":
            lambda draw: sdxl.prompt(draw) | SIZE | {"control_image": draw.image(), "control_mode": 1},
        "StableDiffusionXLControlNetUnionImg2ImgPipeline":
            lambda draw: sdxl.prompt(draw) | _change(draw) | {"control_mode": 1},
        "StableDiffusionXLControlNetUnionInpaintPipeline":
            lambda draw: sdxl.prompt(draw) | _fill(draw) | {"control_mode": 1},
    }) | kinds(_xs, {
        "StableDiffusionControlNetXSPipeline":
            lambda draw: stable_diffusion.prompt(draw) | SIZE | {"image": draw.image()},
        "StableDiffusionXLControlNetXSPipeline": lambda draw: sdxl.prompt(draw) | SIZE | {"image": draw.image()},
    }),
}  # fmt: skip
