"""Diffusion transformers for pictures whose text encoders are CLIP, T5 or Gemma."""

from __future__ import annotations

from typing import Any

import torch

from .controlnet import awake
from .parts import Arguments, Builder, Given, diffusers, kinds, kl, pipeline, plain_kl
from .stable_diffusion import SIZE


def masked(draw: Given, width: int = 32, length: int = 8, mask: type = float) -> dict[str, Any]:
    """A prompt and a negative one with their masks; the last token of each is masked."""
    seen = torch.ones(1, length, dtype={float: torch.float32, int: torch.int64, bool: torch.bool}[mask])
    seen[:, -1] = 0
    return {"prompt_embeds": draw(1, length, width), "prompt_attention_mask": seen,
            "negative_prompt_embeds": draw(1, length, width), "negative_prompt_attention_mask": seen.clone(),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


def without_text(given: dict[str, Any]) -> dict[str, Any]:
    """For pipelines whose default of the negative prompt is a text."""
    return {**given, "negative_prompt": None}


def _flow(name: str, given: Any, network: Any, **parts: Any) -> tuple[Any, Arguments]:
    common = {"transformer": network, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), "vae": plain_kl()}
    return pipeline(name, common | parts, given)


_SD3 = {"sample_size": 32, "patch_size": 1, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32,
        "pooled_projection_dim": 64, "out_channels": 4}  # fmt: skip


def _sd3_prompt(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 8, 32), "negative_prompt_embeds": draw(1, 8, 32),
            "pooled_prompt_embeds": draw(1, 64), "negative_pooled_prompt_embeds": draw(1, 64),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


def _sd3(name: str, given: Any, /, **parts: Any) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.SD3Transformer2DModel(**_SD3), **parts)


def _sd3_control(name: str, given: Any, /) -> tuple[Any, Arguments]:
    extra = {"extra_conditioning_channels": 1} if "Inpaint" in name else {}
    return _sd3(name, given, controlnet=awake(diffusers.SD3ControlNetModel(**_SD3 | {"num_layers": 1}, **extra)))


def _sd3_wide(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.SD3Transformer2DModel(**_SD3 | {"in_channels": 16, "out_channels": 16}),
                 vae=plain_kl(16))  # fmt: skip


def _pixart(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False)  # fmt: skip
    return pipeline(name, {"transformer": network, "vae": kl(), "scheduler": diffusers.DPMSolverMultistepScheduler()},
                    given)  # fmt: skip


_SANA = {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_attention_heads": 2,
         "attention_head_dim": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "sample_size": 32,
         "cross_attention_dim": 8, "caption_channels": 8}  # fmt: skip


def _dc() -> Any:
    return diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.41407)  # fmt: skip


def _sana(name: str, given: Any, /, **parts: Any) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.SanaTransformer2DModel(**_SANA), vae=_dc(),
                 **{"scheduler": diffusers.DPMSolverMultistepScheduler(
                     use_flow_sigmas=True, prediction_type="flow_prediction")} | parts)  # fmt: skip


def _sana_control(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _sana(name, given, controlnet=awake(diffusers.SanaControlNetModel(**_SANA)))


def _sprint(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.SanaTransformer2DModel(**_SANA, qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return _flow(name, given, network, vae=_dc(), scheduler=diffusers.SCMScheduler())


def _sana_prompt(draw: Given) -> dict[str, Any]:
    return without_text(masked(draw, 8, mask=int)) | SIZE | {"use_resolution_binning": False}


def _sprint_prompt(draw: Given) -> dict[str, Any]:
    given = {key: value for key, value in _sana_prompt(draw).items() if not key.startswith("negative")}
    return given if draw.steps == 2 else {**given, "intermediate_timesteps": None}


def _lumina2(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, axes_dim_rope=(4, 2, 2), cap_feat_dim=8))  # fmt: skip


def _lumina(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=4, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, learn_sigma=True, qk_norm=True, cross_attention_dim=8))  # fmt: skip


def _aura(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=1024))  # fmt: skip


def _cogview(name: str, given: Any, /) -> tuple[Any, Arguments]:
    common = {"patch_size": 2, "attention_head_dim": 4, "out_channels": 4, "text_embed_dim": 32, "time_embed_dim": 8}
    if "3" in name:
        network = diffusers.CogView3PlusTransformer2DModel(
            in_channels=4, num_layers=1, num_attention_heads=2, condition_dim=2, pos_embed_max_size=16, sample_size=16,
            **common)  # fmt: skip
        return _flow(name, given, network, vae=kl(), scheduler=diffusers.CogVideoXDDIMScheduler())
    network = diffusers.CogView4Transformer2DModel(
        in_channels=8 if "Control" in name else 4, num_layers=2, num_attention_heads=4, condition_dim=4, **common
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return _flow(name, given, network, vae=kl(), scheduler=scheduler)


def _two(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 16, 32), "negative_prompt_embeds": draw(1, 16, 32), "height": 16, "width": 16,
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


_HUNYUAN = {"sample_size": 16, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3, "in_channels": 4,
            "cross_attention_dim": 32, "cross_attention_dim_t5": 32, "pooled_projection_dim": 16, "hidden_size": 24,
            "activation_fn": "gelu-approximate"}  # fmt: skip


def _hunyuan(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.HunyuanDiT2DModel(num_layers=4, **_HUNYUAN)
    parts = {"transformer": network, "vae": kl(widths=(8, 8, 8, 8)), "scheduler": diffusers.DDPMScheduler(),
             "requires_safety_checker": False}  # fmt: skip
    if "ControlNet" in name:
        parts["controlnet"] = awake(diffusers.HunyuanDiT2DControlNetModel(transformer_num_layers=4, **_HUNYUAN))
    return pipeline(name, parts, given)


def _hunyuan_prompt(draw: Given) -> dict[str, Any]:
    given: dict[str, Any] = {"num_inference_steps": draw.steps, "guidance_scale": draw.guidance, "height": 64,
                             "width": 64, "use_resolution_binning": False}  # fmt: skip
    for end, length in (("", 77), ("_2", 256)):
        for sign in ("", "negative_"):
            given[f"{sign}prompt_embeds{end}"] = draw(1, length, 32)
            given[f"{sign}prompt_attention_mask{end}"] = torch.ones(1, length, dtype=torch.int64)
    return given


def _hidream(name: str, given: Any, /) -> tuple[Any, Arguments]:
    vae = kl(widths=(8, 8, 8, 8), scaling_factor=0.3611, shift_factor=0.1159)
    network = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=(32, 16), text_emb_dim=64, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1))  # fmt: skip
    pipe, arguments = _flow(name, given, network, vae=vae)
    pipe.default_sample_size = 16  # it draws as many pixels as 128, whatever the size that is asked for
    return pipe, arguments


def _hidream_prompt(draw: Given) -> dict[str, Any]:
    given: dict[str, Any] = {"num_inference_steps": draw.steps, "guidance_scale": draw.guidance, **SIZE}
    for sign in ("", "negative_"):
        given |= {f"{sign}prompt_embeds_t5": draw(1, 8, 32), f"{sign}prompt_embeds_llama3": draw(2, 1, 8, 16),
                  f"{sign}pooled_prompt_embeds": draw(1, 64)}  # fmt: skip
    return given


def _dit(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.DiTTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000)  # fmt: skip
    return pipeline(name, {"transformer": network, "vae": kl(), "scheduler": diffusers.DDIMScheduler()}, given)


def _prx(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _flow(name, given, diffusers.PRXTransformer2DModel(
        patch_size=1, in_channels=4, context_in_dim=8, hidden_size=8, mlp_ratio=2.0, num_heads=2, depth=1,
        axes_dim=(2, 2)))  # fmt: skip


def _image(draw: Given) -> dict[str, Any]:
    return {"image": draw.image(), "strength": 1.0}


FAMILIES: dict[str, dict[str, Builder]] = {
    "Stable Diffusion 3": kinds(_sd3, {
        "StableDiffusion3Pipeline": lambda draw: _sd3_prompt(draw) | SIZE,
        "StableDiffusion3PAGPipeline": lambda draw: _sd3_prompt(draw) | SIZE,
        "StableDiffusion3PAGImg2ImgPipeline": lambda draw: _sd3_prompt(draw) | SIZE | _image(draw),
        "StableDiffusion3Img2ImgPipeline": lambda draw: _sd3_prompt(draw) | SIZE | _image(draw),
    }) | kinds(_sd3_wide, {
        "StableDiffusion3InpaintPipeline":
            lambda draw: _sd3_prompt(draw) | SIZE | _image(draw) | {"mask_image": draw.mask()},
    }) | kinds(_sd3_control, {
        "StableDiffusion3ControlNetPipeline": lambda draw: _sd3_prompt(draw) | SIZE | {"control_image": draw.image()},
        "StableDiffusion3ControlNetInpaintingPipeline":
            lambda draw: _sd3_prompt(draw) | SIZE | {"control_image": draw.image(), "control_mask": draw.mask()},
    }),
    "PixArt": kinds(_pixart, {
        "PixArtAlphaPipeline": lambda draw: without_text(masked(draw)) | SIZE | {"use_resolution_binning": False},
        "PixArtSigmaPAGPipeline": lambda draw: without_text(masked(draw)) | SIZE | {"use_resolution_binning": False},
        "PixArtSigmaPipeline": lambda draw: without_text(masked(draw)) | SIZE | {"use_resolution_binning": False},
    }),
    "Sana": kinds(_sana, {"SanaPipeline": _sana_prompt}) | kinds(_sana_control, {
        "SanaControlNetPipeline": lambda draw: _sana_prompt(draw) | {"control_image": draw.image()},
    }) | kinds(_sprint, {
        "SanaSprintPipeline": _sprint_prompt,
        "SanaSprintImg2ImgPipeline": lambda draw: _sprint_prompt(draw) | _image(draw),
    }),
    "Lumina": kinds(_lumina2, {"Lumina2Pipeline": lambda draw: masked(draw, 8, mask=bool) | SIZE})
    | kinds(_lumina, {"LuminaPipeline": lambda draw: masked(draw, 8, mask=bool) | SIZE}),
    "AuraFlow": kinds(_aura, {"AuraFlowPipeline": lambda draw: masked(draw) | SIZE}),
    "CogView": kinds(_cogview, {
        "CogView3PlusPipeline": _two,
        "CogView4Pipeline": _two,
        "CogView4ControlPipeline": lambda draw: _two(draw) | {"control_image": draw.image(16)},
    }),
    "HunyuanDiT": kinds(_hunyuan, {
        "HunyuanDiTPipeline": _hunyuan_prompt,
        "HunyuanDiTPAGPipeline": _hunyuan_prompt,
        "HunyuanDiTControlNetPipeline": lambda draw: _hunyuan_prompt(draw) | {"control_image": draw.image(64)},
    }),
    "HiDream": kinds(_hidream, {"HiDreamImagePipeline": _hidream_prompt}),
    "DiT": kinds(_dit, {"DiTPipeline": lambda draw: {
        "class_labels": [draw.steps], "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}}),
    "PRX": kinds(_prx, {"PRXPipeline": lambda draw: masked(draw, 8, mask=bool) | SIZE
                        | {"use_resolution_binning": False}}),
}  # fmt: skip
