"""Kandinsky 2.2, 3 and 5, and Stable Cascade: priors, decoders, and both in one pipeline."""

from __future__ import annotations

from typing import Any

import torch

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
    pipeline,
    plain_kl,
    unet,
)

SIZE = {"height": 32, "width": 32}


def _steps(draw: Given) -> dict[str, Any]:
    return {"num_inference_steps": draw.steps, "guidance_scale": draw.guidance}


def _movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        latent_channels=4, norm_num_groups=4, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"])  # fmt: skip


def _decoder_parts(name: str) -> dict[str, Any]:
    painting, hinted = "Inpaint" in name, "Control" in name
    network = unet(
        in_channels=9 if painting else 8 if hinted else 4, out_channels=8,
        addition_embed_type="image_hint" if hinted else "image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), encoder_hid_dim=32,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", encoder_hid_dim_type="image_proj", attention_head_dim=4,
        resnet_time_scale_shift="scale_shift")  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, thresholding=True,
        variance_type="learned_range")  # fmt: skip
    return {"unet": network, "movq": _movq(), "scheduler": scheduler}


def _prior_parts() -> dict[str, Any]:
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    prior.clip_std = torch.nn.Parameter(torch.ones(prior.clip_std.shape))
    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
    )
    return {"prior": prior, "image_encoder": clip_vision(), "text_encoder": clip_text(projected=True),
            "tokenizer": clip_words(), "scheduler": scheduler, "image_processor": clip_images()}  # fmt: skip


def _decoder(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return pipeline(name, _decoder_parts(name), given)


def _prior(name: str, given: Any, /) -> tuple[Any, Arguments]:
    return pipeline(name, _prior_parts(), given)


def _combined(name: str, given: Any, /) -> tuple[Any, Arguments]:
    prior = {f"prior_{key}": value for key, value in _prior_parts().items()}
    return pipeline(name, _decoder_parts(name) | prior, given)


def _embeds(draw: Given) -> dict[str, Any]:
    return {"image_embeds": draw(1, 32), "negative_image_embeds": draw(1, 32), **_steps(draw), **SIZE}


def _words(draw: Given) -> dict[str, Any]:
    return {"prompt": draw.text(), "prior_num_inference_steps": 2, **_steps(draw), **SIZE}


def _third(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=32)  # fmt: skip
    return pipeline(name, {"unet": network, "movq": _movq(), "scheduler": diffusers.DDPMScheduler()}, given)


def _third_prompt(draw: Given) -> dict[str, Any]:
    mask = torch.ones(1, 8, dtype=torch.bool)
    return {"prompt_embeds": draw(1, 8, 32), "negative_prompt_embeds": draw(1, 8, 32), "attention_mask": mask,
            "negative_attention_mask": mask, **_steps(draw)}  # fmt: skip


def _fifth(name: str, given: Any, /) -> tuple[Any, Arguments]:
    network = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=16, in_text_dim=32, in_text_dim2=16, time_dim=16, out_visual_dim=16, patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(1, 1, 2), visual_cond="I2" in name,
        attention_type="regular")  # fmt: skip
    vae = plain_kl(16, (8, 8, 8, 8), norm_num_groups=4)
    if name.endswith("VPipeline"):
        vae = diffusers.AutoencoderKLHunyuanVideo(
            block_out_channels=[8] * 4, down_block_types=["HunyuanVideoDownBlock3D"] * 4, latent_channels=16,
            layers_per_block=1, mid_block_add_attention=False, norm_num_groups=4, spatial_compression_ratio=8,
            up_block_types=["HunyuanVideoUpBlock3D"] * 4, temporal_compression_ratio=4)  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe, arguments = pipeline(name, {"transformer": network, "vae": vae, "scheduler": scheduler}, given)
    if hasattr(pipe, "resolutions"):
        pipe.resolutions = [(64, 64)]  # its own have a million pixels
    return pipe, arguments


def _fifth_prompt(draw: Given) -> dict[str, Any]:
    given: dict[str, Any] = _steps(draw)
    for sign in ("", "negative_"):
        given[f"{sign}prompt_embeds_qwen"], given[f"{sign}prompt_embeds_clip"] = draw(1, 8, 32), draw(1, 16)
        given[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, 8], dtype=torch.int32)
    return given


def _cascade_prior() -> Any:
    return diffusers.models.StableCascadeUNet(
        conditioning_dim=32, block_out_channels=(32, 32), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=32, clip_text_in_channels=32,
        clip_text_pooled_in_channels=32, dropout=(0.1, 0.1), down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2)  # fmt: skip


def _cascade_decoder() -> Any:
    plain = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return diffusers.models.StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=(16, 32), num_attention_heads=(-1, 1),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1), block_types_per_layer=(plain, (*plain, "SDCascadeAttnBlock")),
        switch_level=None, clip_text_pooled_in_channels=32, dropout=(0.1, 0.1), effnet_in_channels=16)  # fmt: skip


def _cascade(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    text, words, scheduler = clip_text(projected=True), clip_words(), diffusers.DDPMWuerstchenScheduler()
    parts = {"text_encoder": text, "tokenizer": words, "scheduler": scheduler, "latent_dim_scale": 4.0,
             "prior": _cascade_prior(), "decoder": _cascade_decoder(), "prior_scheduler": scheduler,
             "prior_text_encoder": text, "prior_tokenizer": words,
             "vqgan": PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2)}  # fmt: skip
    return pipeline(name, parts | {"prior_prior": parts["prior"]}, given)


FAMILIES: dict[str, dict[str, Builder]] = {
    "Kandinsky 2.2": kinds(_decoder, {
        "KandinskyV22Pipeline": _embeds,
        "KandinskyV22Img2ImgPipeline": lambda draw: _embeds(draw) | {"image": draw.image(), "strength": 1.0},
        "KandinskyV22InpaintPipeline": lambda draw: _embeds(draw) | {"image": draw.image(), "mask_image": draw.mask()},
        "KandinskyV22ControlnetPipeline": lambda draw: _embeds(draw) | {"hint": draw(1, 3, 128, 128)},
    }) | kinds(_prior, {
        "KandinskyV22PriorPipeline": lambda draw: {"prompt": draw.text(), **_steps(draw)},
        "KandinskyV22PriorEmb2EmbPipeline":
            lambda draw: {"prompt": draw.text(), "image": draw(1, 32), "strength": 1.0, **_steps(draw)},
    }) | kinds(_combined, {
        "KandinskyV22CombinedPipeline": _words,
        "KandinskyV22Img2ImgCombinedPipeline": lambda draw: _words(draw) | {"image": draw.image(), "strength": 1.0},
        "KandinskyV22InpaintCombinedPipeline":
            lambda draw: _words(draw) | {"image": draw.image(), "mask_image": draw.mask()},
    }),
    "Kandinsky 3": kinds(_third, {
        "Kandinsky3Pipeline": lambda draw: _third_prompt(draw) | SIZE,
        "Kandinsky3Img2ImgPipeline": lambda draw: _third_prompt(draw) | {"image": draw.image(), "strength": 1.0},
    }),
    "Kandinsky 5": kinds(_fifth, {
        "Kandinsky5T2IPipeline": lambda draw: _fifth_prompt(draw) | SIZE,
        "Kandinsky5I2IPipeline": lambda draw: _fifth_prompt(draw) | SIZE | {"image": draw.image()},
        "Kandinsky5T2VPipeline": lambda draw: _fifth_prompt(draw) | SIZE | {"num_frames": 5},
        "Kandinsky5I2VPipeline": lambda draw: _fifth_prompt(draw) | SIZE | {"num_frames": 21, "image": draw.image()},
    }),
    "Stable Cascade": kinds(_cascade, {
        "StableCascadePriorPipeline": lambda draw: {"prompt": draw.text(), "height": 128, "width": 128, **_steps(draw)},
        "StableCascadeDecoderPipeline":
            lambda draw: {"image_embeddings": draw(1, 16, 4, 4), "prompt": draw.text(), **_steps(draw)},
        "StableCascadeCombinedPipeline": lambda draw: {
            "prompt": draw.text(), "prior_guidance_scale": 1.5, "decoder_guidance_scale": draw.guidance / 3,
            "num_inference_steps": draw.steps, "prior_num_inference_steps": 2, "height": 128, "width": 128},
    }),
}  # fmt: skip
