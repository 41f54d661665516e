"""FLUX.1, FLUX.2 and Chroma."""

from __future__ import annotations

from typing import Any

from .controlnet import awake
from .parts import Arguments, Builder, Given, diffusers, kinds, pipeline, plain_kl

SIZE = {"height": 16, "width": 16}
_NETWORK = {"patch_size": 1, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32}  # fmt: skip


def prompt(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 12, 32), "pooled_prompt_embeds": draw(1, 32),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


def _network(channels: int, **changed: Any) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=channels, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        **_NETWORK, **changed)  # fmt: skip


def _build(name: str, given: Any, /, network: Any = None, latents: int = 1, **parts: Any) -> tuple[Any, Arguments]:
    common = {"transformer": network or _network(4), "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
              "vae": plain_kl(latents)}  # fmt: skip
    return pipeline(name, common | parts, given)


def _control(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, network=_network(8, out_channels=4))


def _fill(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, network=_network(20, out_channels=8), latents=2)


def _controlnet(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = _network(16)
    control = awake(
        diffusers.FluxControlNetModel(
            in_channels=16, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True, **_NETWORK
        )
    )
    return _build(name, given, network=network, latents=4, controlnet=control)


def _flux2(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.Flux2Transformer2DModel(
        in_channels=4, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds="Klein" not in name,
        **_NETWORK)  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,),
        layers_per_block=1, latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        sample_size=32)  # fmt: skip
    vae.bn.running_var.uniform_(0.5, 1.5)
    return _build(name, given, network=network, vae=vae)


def _chroma(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.ChromaTransformer2DModel(
        in_channels=4, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16, **_NETWORK)  # fmt: skip
    return _build(name, given, network=network)


def _words(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 12, 32), "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}


def _both(draw: Given) -> dict[str, Any]:
    import torch

    mask = torch.ones(1, 12)
    return _words(draw) | {"negative_prompt_embeds": draw(1, 12, 32), "prompt_attention_mask": mask,
                           "negative_prompt_attention_mask": mask}  # fmt: skip


def _change(draw: Given) -> dict[str, Any]:
    return {"image": draw.image(16), "strength": 1.0} | SIZE


def _paint(draw: Given) -> dict[str, Any]:
    return _change(draw) | {"mask_image": draw.mask(16)}


FAMILIES: dict[str, dict[str, Builder]] = {
    "FLUX.1": kinds(_build, {
        "FluxPipeline": lambda draw: prompt(draw) | SIZE,
        "FluxImg2ImgPipeline": lambda draw: prompt(draw) | _change(draw),
        "FluxInpaintPipeline": lambda draw: prompt(draw) | _paint(draw),
        "FluxKontextPipeline": lambda draw: prompt(draw) | SIZE | {
            "image": draw.image(16), "max_area": 256, "_auto_resize": False},
        "FluxKontextInpaintPipeline": lambda draw: prompt(draw) | _paint(draw) | {"_auto_resize": False},
    }) | kinds(_control, {
        "FluxControlPipeline": lambda draw: prompt(draw) | SIZE | {"control_image": draw.image(16)},
        "FluxControlImg2ImgPipeline": lambda draw: prompt(draw) | _change(draw) | {"control_image": draw.image(16)},
        "FluxControlInpaintPipeline": lambda draw: prompt(draw) | _paint(draw) | {"control_image": draw.image(16)},
    }) | kinds(_fill, {
        "FluxFillPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image(16), "mask_image": draw.mask(16)},
    }) | kinds(_controlnet, {
        "FluxControlNetPipeline": lambda draw: prompt(draw) | SIZE | {"control_image": draw.image(16)},
        "FluxControlNetImg2ImgPipeline":
            lambda draw: prompt(draw) | _change(draw) | {"control_image": draw.image(16)},
        "FluxControlNetInpaintPipeline":
            lambda draw: prompt(draw) | _paint(draw) | {"control_image": draw.image(16)},
    }),
    "FLUX.2": kinds(_flux2, {
        "Flux2Pipeline": lambda draw: _words(draw) | SIZE,
        "Flux2KleinPipeline":
            lambda draw: _words(draw) | SIZE | {"negative_prompt_embeds": draw(1, 12, 32), "image": [draw.image(64)]},
        "Flux2KleinInpaintPipeline": lambda draw: _words(draw) | {
            "negative_prompt_embeds": draw(1, 12, 32), "strength": 1.0, "image": draw.image(64),
            "mask_image": draw.mask(64), "height": 64, "width": 64},
        "Flux2KleinKVPipeline": lambda draw: {
            "prompt_embeds": draw(1, 12, 32), "num_inference_steps": draw.steps, "image": draw.image(64)} | SIZE,
    }),
    "Chroma": kinds(_chroma, {
        "ChromaPipeline": lambda draw: _both(draw) | SIZE,
        "ChromaImg2ImgPipeline": lambda draw: _both(draw) | _change(draw),
        "ChromaInpaintPipeline": lambda draw: _both(draw) | _paint(draw),
    }),
}  # fmt: skip
