"""Tiny pipelines of diffusers with random weights, and the arguments of a request with number i for each.

Requests with unlike numbers have other prompts, guidance and numbers of steps. `TINY` maps class names to builders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from studio.devices import torch_setup

torch_setup.prepare()
import diffusers  # noqa: E402  # it imports torchvision, which may be broken

Arguments = Callable[[int], dict[str, Any]]


def stable_diffusion() -> tuple[Any, Arguments]:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DPMSolverMultistepScheduler(steps_offset=1), requires_safety_checker=False,
    )  # fmt: skip

    def arguments(i: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(i)
        embeds = [torch.randn(1, 7, 32, generator=draw) for _ in range(2)]
        return {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "num_inference_steps": 4 + i % 3,
                "guidance_scale": 3.0 + i, "height": 32, "width": 32}  # fmt: skip

    return pipe, arguments


def flux() -> tuple[Any, Arguments]:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,), latent_channels=1, norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.0609, scaling_factor=1.5035,
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip

    def arguments(i: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(i)
        return {"prompt_embeds": torch.randn(1, 12, 32, generator=draw), "height": 16, "width": 16,
                "pooled_prompt_embeds": torch.randn(1, 32, generator=draw), "num_inference_steps": 3 + i % 3,
                "guidance_scale": 3.0 + i}  # fmt: skip

    return pipe, arguments


def wan() -> tuple[Any, Arguments]:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, text_dim=32, ffn_dim=32, num_layers=2,
        rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = diffusers.WanPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=None, tokenizer=None
    )

    def arguments(i: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(i)
        embeds = [torch.randn(1, 16, 32, generator=draw) for _ in range(2)]
        return {"prompt": None, "prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "num_frames": 5,
                "num_inference_steps": 3 + i % 2, "guidance_scale": 3.0 + i, "height": 16, "width": 16}  # fmt: skip

    return pipe, arguments


TINY: dict[str, Callable[[], tuple[Any, Arguments]]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "FluxPipeline": flux,
    "WanPipeline": wan,
}


def build(name: str) -> tuple[Any, Arguments]:
    """A pipeline with weights from a fixed seed, and its arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TINY[name]()


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread, so that results do not depend on how work is divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pixels(result: Any) -> np.ndarray:
    """The pictures or clips of a pipeline's output."""
    return np.asarray(result.images if hasattr(result, "images") else result.frames)
