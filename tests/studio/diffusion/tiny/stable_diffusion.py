"""Stable Diffusion 1 and 2, and what follows them closely."""

from __future__ import annotations

from typing import Any

from .parts import (
    Arguments,
    Builder,
    Given,
    clip_images,
    clip_text,
    clip_vision,
    clip_words,
    diffusers,
    kinds,
    kl,
    pipeline,
    unet,
)

SIZE = {"height": 32, "width": 32}


def prompt(draw: Given) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, 7, 32), "negative_prompt_embeds": draw(1, 7, 32),
            "num_inference_steps": draw.steps, "guidance_scale": draw.guidance}  # fmt: skip


def conditional(draw: Given) -> dict[str, Any]:
    """A prompt without a negative one, for models with guidance built in."""
    return {**prompt(draw), "negative_prompt_embeds": None}


def _build(name: str, given: Any, /, **parts: Any) -> tuple[Any, Arguments]:
    common = {"unet": unet(), "vae": kl(), "scheduler": diffusers.DPMSolverMultistepScheduler(steps_offset=1),
              "requires_safety_checker": False}  # fmt: skip
    return pipeline(name, common | parts, given)


def _lcm(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, unet=unet(time_cond_proj_dim=32), scheduler=diffusers.LCMScheduler())


def _ldm3d(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, vae=kl(in_channels=6, out_channels=6))


def _with(scheduler: str, channels: int = 4) -> Any:
    def build(name: str, given: Any, /) -> tuple[Any, Arguments]:
        return _build(name, given, unet=unet(in_channels=channels), scheduler=getattr(diffusers, scheduler)())

    return build


def _depth(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from transformers import DPTConfig, DPTForDepthEstimation

    depth = DPTForDepthEstimation(DPTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=4,
        backbone_out_indices=[0, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8, reassemble_factors=[1, 1],
        is_hybrid=False))  # fmt: skip
    return _build(name, given, unet=unet(in_channels=5), depth_estimator=depth, scheduler=diffusers.DDIMScheduler())


def _variation(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, image_encoder=clip_vision(), feature_extractor=clip_images())


def _upscale(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = unet(in_channels=7, num_class_embeds=1000)
    return _build(name, given, unet=network, low_res_scheduler=diffusers.DDPMScheduler())


def _latent_upscale(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = unet(
        act_fn="gelu", norm_num_groups=None, time_cond_proj_dim=160, conv_in_kernel=1, conv_out_kernel=1, in_channels=8,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3), mid_block_type=None, out_channels=5,
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"), resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu", block_out_channels=(32, 32, 64, 64))  # fmt: skip
    return _build(
        name,
        given,
        unet=network,
        vae=kl(widths=(8, 8, 8, 8)),
        text_encoder=clip_text(),
        tokenizer=clip_words(),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    )


def _adapter(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = unet(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                   up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    return _build(
        name,
        given,
        unet=network,
        adapter=diffusers.T2IAdapter(
            in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        ),
    )


def _gligen(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return _build(name, given, unet=unet(attention_type="gated"), tokenizer=clip_words(), text_encoder=clip_text(),
                  scheduler=diffusers.DDIMScheduler())  # fmt: skip


def _unclip(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    network = unet(class_embed_type="projection", projection_class_embeddings_input_dim=64)
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    noise = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return _build(name, given, unet=network, image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
                  image_noising_scheduler=noise, image_encoder=clip_vision(), feature_extractor=clip_images(),
                  prior=prior, prior_text_encoder=clip_text(projected=True), prior_tokenizer=clip_words(),
                  prior_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample",
                                                            clip_sample_range=5.0),
                  text_encoder=clip_text(), tokenizer=clip_words())  # fmt: skip


FAMILIES: dict[str, dict[str, Builder]] = {
    "Stable Diffusion": kinds(_build, {
        "StableDiffusionPipeline": lambda draw: prompt(draw) | SIZE,
        "StableDiffusionImg2ImgPipeline": lambda draw: prompt(draw) | {"image": draw.image(), "strength": 1.0},
        "StableDiffusionInpaintPipeline":
            lambda draw: prompt(draw) | SIZE | {"image": draw.image(), "mask_image": draw.mask()},
    }) | kinds(_with("EulerAncestralDiscreteScheduler", 8), {
        "StableDiffusionInstructPix2PixPipeline": lambda draw: prompt(draw) | {"image": draw.image()},
    }) | kinds(_with("DDIMScheduler"), {
        "StableDiffusionPanoramaPipeline": lambda draw: prompt(draw) | SIZE,
        "StableDiffusionSAGPipeline": lambda draw: prompt(draw) | SIZE,
        "StableDiffusionPAGPipeline": lambda draw: prompt(draw) | SIZE,
        "StableDiffusionPAGImg2ImgPipeline": lambda draw: prompt(draw) | {"image": draw.image(), "strength": 1.0},
        "StableDiffusionPAGInpaintPipeline":
            lambda draw: prompt(draw) | SIZE | {"image": draw.image(), "mask_image": draw.mask()},
    }) | kinds(_ldm3d, {
        "StableDiffusionLDM3DPipeline": lambda draw: prompt(draw) | SIZE,
    }) | kinds(_lcm, {
        "LatentConsistencyModelPipeline": lambda draw: conditional(draw) | SIZE,
        "LatentConsistencyModelImg2ImgPipeline": lambda draw: conditional(draw) | {"image": draw.image()},
    }) | kinds(_depth, {
        "StableDiffusionDepth2ImgPipeline":
            lambda draw: prompt(draw) | {"image": draw.image(), "strength": 1.0, "depth_map": draw(1, 32, 32)},
    }) | kinds(_variation, {
        "StableDiffusionImageVariationPipeline": lambda draw: {
            "image": draw.image(), "num_inference_steps": draw.steps, "guidance_scale": draw.guidance} | SIZE,
    }) | kinds(_upscale, {
        "StableDiffusionUpscalePipeline": lambda draw: prompt(draw) | {"image": draw.image(16)},
    }) | kinds(_latent_upscale, {
        "StableDiffusionLatentUpscalePipeline": lambda draw: {
            "prompt": draw.text(), "image": draw.image(64), "num_inference_steps": draw.steps,
            "guidance_scale": draw.guidance},
    }) | kinds(_adapter, {
        "StableDiffusionAdapterPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image()},
    }) | kinds(_gligen, {
        "StableDiffusionGLIGENPipeline": lambda draw: prompt(draw) | SIZE | {
            "gligen_phrases": ["a cat"], "gligen_boxes": [[0.1, 0.1, 0.5, 0.4 + draw.guidance / 20]]},
    }) | kinds(_unclip, {
        "StableUnCLIPPipeline": lambda draw: {
            "prompt": draw.text(), "num_inference_steps": draw.steps, "guidance_scale": draw.guidance,
            "prior_num_inference_steps": 2} | SIZE,
        "StableUnCLIPImg2ImgPipeline": lambda draw: prompt(draw) | SIZE | {"image": draw.image()},
    }),
}  # fmt: skip
