"""Train the image model's U-Net: diffusers' `UNet2DConditionModel` on 16x16x8 latents, conditioned on CLIP text states.

Rectified flow (Liu et al. 2022): x_s = (1 - s) x_0 + s e, and the net predicts v = e - x_0 at noise level s in (0, 1].
One caption in ten is empty, for classifier-free guidance (Ho and Salimans 2022). Attention is used only at 8x8:
at 16x16 it took a quarter of a training step on a CPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from studio.devices.precision import autocast
from studio.loaders import transformers
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.pictures import Captioner, as_written
from studio.training.run import Run


def build(text_width: int = 192, latents: int = 8) -> UNet2DConditionModel:
    """The starter's U-Net with fresh weights: 12.0M parameters."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=latents, out_channels=latents, cross_attention_dim=text_width,
        block_out_channels=(128, 160, 192), layers_per_block=1, norm_num_groups=16, attention_head_dim=(4, 5, 6),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def noise_levels(count: int, rng: torch.Generator) -> Tensor:
    """Noise levels s in (0, 1): a logistic of normal numbers, more often in the middle (Esser et al. 2024, section
    3.1).
    """
    return torch.sigmoid(1.2 * torch.randn(count, generator=rng)).clamp(0.001, 0.999)


def text_states(tower: CLIPTextModel, tokenizer: Path) -> Callable[[list[str]], Tensor]:
    """A frozen text encoder as a function: captions to states (len, 48, width), padded as in sampling."""
    tokens = transformers.tokenizer("CLIPTokenizer", tokenizer)

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        ids = tokens(
            texts, padding="max_length", truncation=True, max_length=tokens.model_max_length, return_tensors="pt"
        )
        return tower(input_ids=ids.input_ids.to(tower.device)).last_hidden_state

    return encode


def train(latents: Tensor, records: Sequence[Any], encode: Callable[[list[str]], Tensor], folder: Path, *,
          device: torch.device, steps: int, minutes: float, batch: int = 32, peak: float = 6e-4, decay: float = 0.999,
          seed: int = 0, begin: UNet2DConditionModel | None = None, caption: Captioner = as_written,
          weights: Sequence[float] | None = None) -> UNet2DConditionModel:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA model.

    Args:
        latents: float32 (N, 8, 16, 16), each channel of mean 0 and deviation 1; row i belongs to `records[i]`.
        records: what `caption` makes a caption from, each time that a picture is drawn; by default the captions.
        weights: the sampling weight of each row; by default equal.
        encode: the frozen text encoder: captions to states (len, T, text width).
        batch: batch size over all processes of the run.
        peak: peak learning rate.
        begin: a U-Net with the initial weights of a new run.
    """
    torch.manual_seed(seed)
    model = (begin or build(encode([""]).shape[-1], latents.shape[1])).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, decay)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes,
        fixed={"data": fingerprint(latents, records), "text": fingerprint(encode(["a red apple"]).float())},
        changeable={"batch": batch, "rate": peak, "seed": seed},
    )  # fmt: skip
    words = random.Random(f"{seed}-{run.step}-{run.peers.rank}")
    noise = run.noise(seed)
    batch = max(1, batch // run.peers.count)
    drawn = torch.ones(len(records)) if weights is None else torch.tensor(weights)
    for _ in run:
        run.rate(peak)
        rows = torch.multinomial(drawn, batch, replacement=True, generator=noise)
        texts = ["" if words.random() < 0.1 else caption(records[i], words) for i in rows.tolist()]
        x0 = latents[rows].to(device)  # (B, C, 16, 16)
        e = torch.randn(x0.shape, generator=noise).to(device)
        s = noise_levels(batch, noise).to(device)
        x = torch.lerp(x0, e, s[:, None, None, None])
        with autocast(device):
            v = model(x, s * 1000, encode(texts)).sample
        loss = F.mse_loss(v.float(), e - x0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.share(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        run.log(loss=loss)
    return ema.module
