"""Clips: Wan and SkyReels, LTX, CogVideoX, Hunyuan, Mochi, AnimateDiff, Stable Video Diffusion and others."""

from __future__ import annotations

from typing import Any

from .parts import Arguments, Builder, Given, clip_images, clip_vision, diffusers, kinds, pipeline

SIZE = {"height": 16, "width": 16}


def prompt(draw: Given, width: int = 32) -> dict[str, Any]:
    return {"prompt": None, "prompt_embeds": draw(1, 16, width), "negative_prompt_embeds": draw(1, 16, width),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


_WAN = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "ffn_dim": 32,
        "num_layers": 2, "rope_max_seq_len": 32}  # fmt: skip


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def _wan(name: str, given: Any, /, network: Any = None, **parts: Any) -> tuple[Any, Arguments]:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    common = {"transformer": network or diffusers.WanTransformer3DModel(**_WAN), "vae": wan_vae(),
              "scheduler": scheduler}  # fmt: skip
    return pipeline(name, common | parts, given)


def _wan_euler(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _wan(name, given, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0))


def _wan_image(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.WanTransformer3DModel(in_channels=36, image_dim=32, **_WAN)
    return _wan(name, given, network, image_encoder=clip_vision(), image_processor=clip_images())


def _wan_vace(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _wan(name, given, diffusers.WanVACETransformer3DModel(**_WAN, vace_layers=[0, 1], vace_in_channels=96))


def _skyreels(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _wan(name, given, diffusers.SkyReelsV2Transformer3DModel(**_WAN))


def _skyreels_image(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.SkyReelsV2Transformer3DModel(in_channels=36, image_dim=32, **_WAN)
    return _wan(name, given, network, image_encoder=clip_vision(), image_processor=clip_images())


FAMILIES: dict[str, dict[str, Builder]] = {
    "Wan": kinds(_wan, {
        "WanPipeline": lambda draw: prompt(draw) | SIZE | {"num_frames": 5},
    }) | kinds(_wan_euler, {
        "WanVideoToVideoPipeline": lambda draw: prompt(draw) | SIZE | {"video": draw.images(5, 16), "strength": 1.0},
    }) | kinds(_wan_image, {
        "WanImageToVideoPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image(16), "num_frames": 5},
    }) | kinds(_wan_vace, {
        "WanVACEPipeline": lambda draw: prompt(draw) | SIZE | {
            "video": draw.images(5, 16), "mask": [draw.mask(16) for _ in range(5)], "num_frames": 5},
    }),
    "SkyReels V2": kinds(_skyreels, {
        "SkyReelsV2Pipeline": lambda draw: prompt(draw) | SIZE | {"num_frames": 5},
        "SkyReelsV2DiffusionForcingPipeline": lambda draw: prompt(draw) | SIZE | {"num_frames": 5},
        "SkyReelsV2DiffusionForcingImageToVideoPipeline":
            lambda draw: prompt(draw) | SIZE | {"image": draw.image(16), "num_frames": 5},
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline":
            lambda draw: prompt(draw) | SIZE | {"video": draw.images(5, 16), "num_frames": 9, "overlap_history": 1},
    }) | kinds(_skyreels_image, {
        "SkyReelsV2ImageToVideoPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image(16), "num_frames": 5},
    }),
}  # fmt: skip
