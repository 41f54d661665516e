"""Clips of other families than Wan: LTX, CogVideoX, Hunyuan, Mochi, Allegro, Latte, AnimateDiff, and others."""

from __future__ import annotations

from typing import Any

import torch

from .controlnet import awake
from .dit import masked, without_text
from .parts import Arguments, Builder, Given, clip_images, clip_vision, diffusers, kinds, kl, pipeline, unet
from .video import SIZE, prompt, wan_vae

FRAMES = {"num_frames": 9, **SIZE}


def _flow(name: str, given: Any, network: Any, vae: Any, **parts: Any) -> tuple[Any, Arguments]:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return pipeline(name, {"transformer": network, "vae": vae, "scheduler": scheduler} | parts, given)


def _ltx(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32)  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, patch_size=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        decoder_spatio_temporal_scaling=(True, True, False, False), upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4, timestep_conditioning=False)  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return _flow(name, given, network, vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def _ltx_prompt(draw: Given) -> dict[str, Any]:
    return without_text(masked(draw, mask=bool)) | {"height": 32, "width": 32, "num_frames": 9}


def _ltx2(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    network = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False,
        rope_type="split")  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=2, video_connector_num_attention_heads=2, rope_type="split",
        video_connector_attention_head_dim=8, video_connector_num_layers=1, audio_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32, rope_double_precision=False)  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=False, patch_size=1)  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8,
        mid_block_add_attention=False)  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000)  # fmt: skip
    return _flow(name, given, network, vae, audio_vae=sound, vocoder=vocoder, connectors=connectors,
                 scheduler=diffusers.FlowMatchEulerDiscreteScheduler())  # fmt: skip


def _ltx2_prompt(draw: Given) -> dict[str, Any]:
    return masked(draw, mask=int) | {"height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0}


def _cog(name: str, given: Any, /) -> tuple[Any, Arguments]:
    pictured = "ImageTo" in name or "Control" in name
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8 if pictured else 4, out_channels=4,
        time_embed_dim=2, text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=pictured)  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2)  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler() if "Control" in name else diffusers.CogVideoXDPMScheduler()
    return _flow(name, given, network, vae, scheduler=scheduler)


def _hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4, block_out_channels=(8,) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, layers_per_block=1, norm_num_groups=4)  # fmt: skip


def _hunyuan(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=8 if "Image" in name else 4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
        num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4))  # fmt: skip
    return _flow(name, given, network, _hunyuan_vae())


def _hunyuan_prompt(draw: Given) -> dict[str, Any]:
    mask = torch.ones(1, 8)
    mask[:, -draw.steps :] = 0
    return {"prompt_embeds": draw(1, 8, 16), "pooled_prompt_embeds": draw(1, 8), "prompt_attention_mask": mask,
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance, **FRAMES}  # fmt: skip


def _hunyuan15(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from diffusers.guiders import ClassifierFreeGuidance

    network = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, text_embed_dim=16, text_embed_2_dim=32, image_embed_dim=12, target_size=16,
        rope_axes_dim=(2, 2, 4), task_type="t2v")  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False)  # fmt: skip
    return _flow(name, given, network, vae, guider=ClassifierFreeGuidance(guidance_scale=3.0))


def _hunyuan15_prompt(draw: Given) -> dict[str, Any]:
    given: dict[str, Any] = {"num_inference_steps": draw.steps, **FRAMES}
    for sign in ("", "negative_"):
        for end, width in (("", 16), ("_2", 32)):
            given[f"{sign}prompt_embeds{end}"] = draw(1, 8, width)
            given[f"{sign}prompt_embeds_mask{end}"] = torch.ones(1, 8)
    return given


def _mochi(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=32, time_embed_dim=4, max_sequence_length=16)  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5)  # fmt: skip
    return _flow(name, given, network, vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def _allegro(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1, sample_width=8,
        cross_attention_dim=24, sample_height=8, sample_frames=8, caption_channels=32)  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4, latent_channels=4,
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)  # fmt: skip
    vae.enable_tiling()  # it decodes by tiles only
    vae.kernel = vae.stride = (8, 16, 16)
    vae.tile_overlap_t = vae.tile_overlap_h = vae.tile_overlap_w = 0
    return _flow(name, given, network, vae, scheduler=diffusers.DDIMScheduler())


def _latte(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single",
        num_embeds_ada_norm=1000, video_length=2)  # fmt: skip
    return _flow(name, given, network, kl(), scheduler=diffusers.DDIMScheduler())


def _animate(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = unet(block_out_channels=(16, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                   up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    adapter = awake(
        diffusers.MotionAdapter(
            block_out_channels=(16, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=4,
        )
    )
    parts: dict[str, Any] = {
        "unet": network,
        "motion_adapter": adapter,
        "vae": kl(),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    }
    if "Sparse" in name:
        parts["controlnet"] = awake(diffusers.SparseControlNetModel(
            block_out_channels=(16, 16), layers_per_block=1, conditioning_channels=3, cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), norm_num_groups=4,
            conditioning_embedding_out_channels=(8, 8), use_simplified_condition_embedding=False))  # fmt: skip
    elif "Control" in name:
        control = diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16))
        parts["controlnet"] = awake(control)
    return pipeline(name, parts, given)


def _animate_prompt(draw: Given) -> dict[str, Any]:
    return {key: value for key, value in prompt(draw).items() if key != "prompt"} | SIZE


def _svd(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, cross_attention_dim=32, num_attention_heads=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), addition_time_embed_dim=32,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        projection_class_embeddings_input_dim=96)  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4)  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, timestep_type="continuous",
        use_karras_sigmas=True)  # fmt: skip
    return pipeline(
        name,
        {
            "unet": network,
            "vae": vae,
            "scheduler": scheduler,
            "image_encoder": clip_vision(image_size=224, patch_size=56),
            "feature_extractor": clip_images(224),
        },
        given,
    )


class Safe(torch.nn.Module):
    """In place of the safety checker, which the pipeline insists on."""

    device = torch.device("cpu")

    def check_text_safety(self, text: str) -> bool:
        return bool(text) or text == ""

    def check_video_safety(self, video: Any) -> Any:
        return video


def _cosmos(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.CosmosTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
        text_embed_dim=32, adaln_lora_dim=4, max_size=(4, 32, 32), rope_scale=(2.0, 1.0, 1.0),
        extra_pos_embed_type="learnable")  # fmt: skip
    return _flow(name, given, network, wan_vae(), safety_checker=Safe(),
                 scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))  # fmt: skip


def _sana(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8,
        sample_size=8, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=32)  # fmt: skip
    return _flow(name, given, network, wan_vae(), scheduler=diffusers.DPMSolverMultistepScheduler())


def _easy(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=16, sample_height=16, patch_size=2)  # fmt: skip
    vae = diffusers.AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3), block_out_channels=(8,) * 4,
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3), latent_channels=4, layers_per_block=1,
        norm_num_groups=2, spatial_group_norm=False)  # fmt: skip
    return _flow(name, given, network, vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


FAMILIES: dict[str, dict[str, Builder]] = {
    "LTX": kinds(_ltx, {
        "LTXPipeline": _ltx_prompt,
        "LTXImageToVideoPipeline": lambda draw: _ltx_prompt(draw) | {"image": draw.image()},
        "LTXConditionPipeline": lambda draw: _ltx_prompt(draw) | {"image": draw.image()},
    }),
    "LTX-2": kinds(_ltx2, {
        "LTX2Pipeline": _ltx2_prompt,
        "LTX2ImageToVideoPipeline": lambda draw: _ltx2_prompt(draw) | {"image": draw.image()},
    }),
    "CogVideoX": kinds(_cog, {
        "CogVideoXPipeline": lambda draw: prompt(draw) | FRAMES,
        "CogVideoXImageToVideoPipeline": lambda draw: prompt(draw) | FRAMES | {"image": draw.image(16)},
        "CogVideoXVideoToVideoPipeline":
            lambda draw: prompt(draw) | SIZE | {"video": draw.images(9, 16), "strength": 1.0},
        "CogVideoXFunControlPipeline": lambda draw: prompt(draw) | SIZE | {"control_video": draw.images(9, 16)},
    }),
    "HunyuanVideo": kinds(_hunyuan, {
        "HunyuanVideoPipeline": _hunyuan_prompt,
        "HunyuanSkyreelsImageToVideoPipeline": lambda draw: _hunyuan_prompt(draw) | {
            "image": draw.image(16), "guidance_scale": draw.guidance, "negative_prompt_embeds": draw(1, 8, 16),
            "negative_pooled_prompt_embeds": draw(1, 8), "negative_prompt_attention_mask": torch.ones(1, 8)},
    }) | kinds(_hunyuan15, {"HunyuanVideo15Pipeline": _hunyuan15_prompt}),
    "Mochi": kinds(_mochi, {
        "MochiPipeline": lambda draw: without_text(masked(draw, length=16, mask=bool)) | {**FRAMES, "num_frames": 7}}),
    "Allegro": kinds(_allegro, {
        "AllegroPipeline": lambda draw: without_text(masked(draw)) | {**FRAMES, "num_frames": 8}}),
    "Latte": kinds(_latte, {"LattePipeline": lambda draw: without_text(prompt(draw)) | {
        "height": 8, "width": 8, "video_length": 2, "clean_caption": False}}),
    "AnimateDiff": kinds(_animate, {
        "AnimateDiffPipeline": lambda draw: _animate_prompt(draw) | {"num_frames": 3},
        "AnimateDiffPAGPipeline": lambda draw: _animate_prompt(draw) | {"num_frames": 3},
        "AnimateDiffVideoToVideoControlNetPipeline": lambda draw: _animate_prompt(draw) | {
            "video": draw.images(3, 16), "conditioning_frames": draw.images(3, 16), "strength": 1.0},
        "AnimateDiffVideoToVideoPipeline":
            lambda draw: _animate_prompt(draw) | {"video": draw.images(3, 16), "strength": 1.0},
        "AnimateDiffControlNetPipeline":
            lambda draw: _animate_prompt(draw) | {"num_frames": 3, "conditioning_frames": draw.images(3, 16)},
        "AnimateDiffSparseControlNetPipeline": lambda draw: _animate_prompt(draw) | {
            "num_frames": 3, "conditioning_frames": draw.images(1, 16), "controlnet_frame_indices": [0]},
    }),
    "Stable Video Diffusion": kinds(_svd, {"StableVideoDiffusionPipeline": lambda draw: {
        "image": draw.image(), "num_inference_steps": draw.steps, "max_guidance_scale": draw.guidance, "num_frames": 2,
        "height": 32, "width": 32}}),
    "Cosmos": kinds(_cosmos, {"Cosmos2TextToImagePipeline": lambda draw: prompt(draw) | {"height": 32, "width": 32}}),
    "Sana Video": kinds(_sana, {"SanaVideoPipeline": lambda draw: without_text(masked(draw, 8, mask=int)) | {
        "height": 32, "width": 32, "frames": 9, "use_resolution_binning": False}}),
    "EasyAnimate": kinds(_easy, {"EasyAnimatePipeline": lambda draw: without_text(masked(draw, mask=int)) | {
        **SIZE, "num_frames": 5}}),
}  # fmt: skip
