"""Whole tiny pipelines with text encoders and tokenizers made on the spot, saved as people's folders are.

`WHOLE` maps class names to builders. Try it: ``save("StableDiffusionPipeline", folder)``
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from studio.devices import torch_setup

torch_setup.prepare()
import diffusers  # noqa: E402  # it imports torchvision, which may be broken
import transformers  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz "
_QUIET = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip_tokenizer() -> Any:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{each}</w>" for each in LETTERS)]
    return transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16, unk_token="<|endoftext|>"
    )


def t5_tokenizer() -> Any:
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS.strip()]
    return transformers.T5Tokenizer(
        vocab=[(word, 0.0 if i < 3 else -2.0 - i / 10) for i, word in enumerate(words)],
        extra_ids=0,
        model_max_length=16,
    )


def qwen_tokenizer() -> Any:
    words = ["<|endoftext|>", *LETTERS.replace(" ", "Ġ"), "Ċ", "<", ">", "|", "_", ".", ",", ":"]
    made = transformers.Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def clip_text(projection: bool = False, hidden: int = 32) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, max_position_embeddings=16, **_QUIET,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5(kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, relative_attention_num_buckets=8
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def qwen_vl() -> Any:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, vision_start_token_id=60, vision_end_token_id=61, image_token_id=62,
        video_token_id=63,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def kl(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 8,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**{**config, **changes})


def unet(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 32,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "norm_num_groups": 8,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**{**config, **changes})


def stable_diffusion() -> Any:
    checker = transformers.CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
                       "image_size": 32, "patch_size": 16, "projection_dim": 8}, projection_dim=8,
    )  # fmt: skip
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    return diffusers.StableDiffusionPipeline(
        vae=kl(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
        safety_checker=StableDiffusionSafetyChecker(checker),
        feature_extractor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )  # fmt: skip


def sdxl() -> Any:
    net = unet(addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
               projection_class_embeddings_input_dim=80, transformer_layers_per_block=(1, 2),
               use_linear_projection=True)  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(), text_encoder=clip_text(), text_encoder_2=clip_text(projection=True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=net, scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
        add_watermarker=False,
    )  # fmt: skip


def sd3() -> Any:
    net = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        vae=kl(shift_factor=0.06, scaling_factor=1.5), transformer=net, text_encoder=clip_text(projection=True),
        text_encoder_2=clip_text(projection=True), text_encoder_3=t5(), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux() -> Any:
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(), transformer=net,
        vae=kl(latent_channels=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
    )  # fmt: skip


def wan() -> Any:
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, text_dim=32, ffn_dim=32, num_layers=2,
        rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return diffusers.WanPipeline(
        transformer=net, vae=vae, text_encoder=t5("UMT5"), tokenizer=t5_tokenizer(), boundary_ratio=None,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )  # fmt: skip


def qwen_image() -> Any:
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae, transformer=net,
        text_encoder=qwen_vl(), tokenizer=qwen_tokenizer(),
    )  # fmt: skip


WHOLE: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusion3Pipeline": sd3,
    "FluxPipeline": flux,
    "WanPipeline": wan,
    "QwenImagePipeline": qwen_image,
}


@cache
def made(name: str) -> Any:
    """A pipeline with weights from a fixed seed; it is kept, so do not change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WHOLE[name]()


def save(name: str, folder: Path, **options: Any) -> Path:
    """Save a pipeline, as `save_pretrained` does."""
    made(name).save_pretrained(folder, **options)
    return folder


def arguments(name: str) -> dict[str, Any]:
    """The arguments of a short call with a prompt."""
    side = {"height": 16, "width": 16} if name in ("WanPipeline", "FluxPipeline") else {"height": 32, "width": 32}
    more = {"num_frames": 5} if name == "WanPipeline" else {}
    if name not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        more["max_sequence_length"] = 16
    return {"prompt": "a red boat", "num_inference_steps": 2, **side, **more}
