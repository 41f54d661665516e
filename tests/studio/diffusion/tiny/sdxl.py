"""Stable Diffusion XL and Kolors."""

from __future__ import annotations

from typing import Any

from .parts import Arguments, Builder, Given, clip_text, diffusers, kinds, kl, pipeline, sdxl_unet
from .stable_diffusion import SIZE


def prompt(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 7, 32), "negative_prompt_embeds": draw(1, 7, 32),
            "pooled_prompt_embeds": draw(1, 32), "negative_pooled_prompt_embeds": draw(1, 32),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


def _build(name: str, given: Any, /, **parts: Any) -> tuple[Any, Arguments]:
    common = {"unet": sdxl_unet(), "vae": kl(), "scheduler": diffusers.EulerDiscreteScheduler(),
              "text_encoder_2": clip_text(projected=True), "add_watermarker": False}  # fmt: skip
    return pipeline(name, common | parts, given)


def _edit(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, unet=sdxl_unet(in_channels=8))


def _adapter(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = sdxl_unet(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    return _build(
        name,
        given,
        unet=network,
        adapter=diffusers.T2IAdapter(
            in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        ),
    )


FAMILIES: dict[str, dict[str, Builder]] = {
    "Stable Diffusion XL": kinds(_build, {
        "StableDiffusionXLPipeline": lambda draw: prompt(draw) | SIZE,
        "StableDiffusionXLImg2ImgPipeline": lambda draw: prompt(draw) | {"image": draw.image(), "strength": 1.0},
        "StableDiffusionXLInpaintPipeline":
            lambda draw: prompt(draw) | SIZE | {"image": draw.image(), "mask_image": draw.mask(), "strength": 1.0},
        "StableDiffusionXLPAGPipeline": lambda draw: prompt(draw) | SIZE,
        "StableDiffusionXLPAGImg2ImgPipeline": lambda draw: prompt(draw) | {"image": draw.image(), "strength": 1.0},
        "StableDiffusionXLPAGInpaintPipeline":
            lambda draw: prompt(draw) | SIZE | {"image": draw.image(), "mask_image": draw.mask(), "strength": 1.0},
    }) | kinds(_edit, {
        "StableDiffusionXLInstructPix2PixPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image()},
    }) | kinds(_adapter, {
        "StableDiffusionXLAdapterPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image()},
    }),
    "Kolors": kinds(_build, {
        "KolorsPipeline": lambda draw: prompt(draw) | SIZE,
        "KolorsImg2ImgPipeline": lambda draw: prompt(draw) | {"image": draw.image(), "strength": 1.0},
    }),
}  # fmt: skip
