"""Sounds: Stable Audio and ACE-Step."""

from __future__ import annotations

from typing import Any

import torch

from .parts import Arguments, Builder, Given, diffusers, kinds, letters, pipeline


def _oobleck(channels: int) -> Any:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=channels,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4)  # fmt: skip


def _stable(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    network = diffusers.StableAudioDiTModel(
        sample_size=4, in_channels=3, num_layers=2, attention_head_dim=4, num_key_value_attention_heads=2,
        out_channels=3, cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8,
        cross_attention_input_dim=4)  # fmt: skip
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential")  # fmt: skip
    projection = StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=4, min_value=0, max_value=32)
    return pipeline(name, {"transformer": network, "scheduler": scheduler, "vae": _oobleck(3),
                           "projection_model": projection}, given)  # fmt: skip


def _ace(name: str, given: Any, /) -> tuple[Any, Arguments]:
    from diffusers.pipelines.ace_step.modeling_ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    common = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 8}  # fmt: skip
    pooled = {"audio_acoustic_hidden_dim": 8, "pool_window_size": 2, "num_attention_pooler_hidden_layers": 1}
    network = diffusers.AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, sliding_window=16, **common
    )
    encoder = AceStepConditionEncoder(
        text_hidden_dim=32, timbre_hidden_dim=8, num_lyric_encoder_hidden_layers=2, sliding_window=16,
        num_timbre_encoder_hidden_layers=2, **common)  # fmt: skip
    tokenizer = AceStepAudioTokenizer(
        fsq_dim=32, fsq_input_levels=[4, 4, 4], fsq_input_num_quantizers=1, sliding_window=16, **pooled, **common
    )
    text = Qwen3Model(Qwen3Config(vocab_size=64, num_hidden_layers=2, max_position_embeddings=512, **common))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return pipeline(
        name,
        {
            "transformer": network,
            "condition_encoder": encoder,
            "vae": _oobleck(8),
            "text_encoder": text,
            "tokenizer": letters(),
            "scheduler": scheduler,
            "audio_tokenizer": tokenizer,
            "audio_token_detokenizer": AceStepAudioTokenDetokenizer(sliding_window=16, **pooled, **common),
        },
        given,
    )


def _sound(draw: Given) -> dict[str, Any]:
    mask = torch.ones(1, 8, dtype=torch.int64)
    return {
        "prompt_embeds": draw(1, 8, 16),
        "negative_prompt_embeds": draw(1, 8, 16),
        "attention_mask": mask,
        "negative_attention_mask": mask,
        "num_inference_steps": draw.steps,
        "guidance_scale": draw.guidance,
    }


FAMILIES: dict[str, dict[str, Builder]] = {
    "Stable Audio": kinds(_stable, {"StableAudioPipeline": _sound}),
    "ACE-Step": kinds(_ace, {"AceStepPipeline": lambda draw: {
        "prompt": draw.text(), "lyrics": draw.text(), "audio_duration": 0.4, "num_inference_steps": draw.steps,
        "guidance_scale": draw.guidance, "max_text_length": 32}}),
}  # fmt: skip
