"""Tiny folders with random weights, made once a session by the project's own export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studio.devices import torch_setup

torch_setup.prepare()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, two levels deep (f=2 latents of 4 channels), a tokenizer learnt from a few words."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from recipes.text import tokenizer
    from studio_diffusion import export

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer.train(["a red apple", "一个红苹果", "octopus"] * 3, folder / "tokenizer", context=16)
    size = len(__import__("json").loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, cross_attention_dim=32, block_out_channels=(16, 32),
        layers_per_block=1, norm_num_groups=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.5)  # so that the net's answer changes the picture
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=32, scaling_factor=0.7,
    )  # fmt: skip
    export.save(folder / "model", vae, unet, text, folder / "tokenizer")
    return folder / "model"


def tiny_net(classes: int | None = None, channels: int = 3) -> Any:
    """Random weights, two levels deep, whose answers are large enough to change the picture."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=16, in_channels=channels, out_channels=channels, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.3)
    return unet


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel model of three labels."""
    from studio.diffusion import noise
    from studio_diffusion import export

    folder = tmp_path_factory.mktemp("ddpm") / "model"
    export.save_pixel(folder, tiny_net(4), noise.config("cosine", "v"), ["apple", "pear", "whale"])
    return folder
