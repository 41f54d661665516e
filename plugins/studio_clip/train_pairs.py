"""Contrastive training on pictures and captions (Radford et al. 2021): open_clip's `CLIP`, its loss, its temperature.

Either tower may be locked (frozen), both, or none. For the starter the text tower is locked, since the image model
depends on it, and the image tower is trained to match it (reverse LiT, Zhai et al. 2022).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from studio.devices.precision import autocast
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.pictures import Captioner, as_written
from studio.training.run import Run
from studio_clip import contrast, convert

LOCKS = ("text", "image", "both", "none")
"""Which tower is locked. The last projection of a locked image tower is trained all the same, as in open_clip."""


def text_tower(vocabulary: int, context: int, embed: int = 384) -> CLIPTextModelWithProjection:
    """A fresh text tower of six layers of 192, 5.8M parameters with 16k tokens, projected to `embed` dimensions."""
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3,
        max_position_embeddings=context, hidden_act="gelu", projection_dim=embed,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    ))  # fmt: skip


def build(text: CLIPTextModelWithProjection, tower: str = "vit") -> open_clip.CLIP:
    """open_clip's CLIP with the given text tower and a fresh image tower, a key of `convert.TOWERS`."""
    model = open_clip.CLIP(**convert.config(text.config, convert.TOWERS[tower]))
    missing, unknown = model.load_state_dict(convert.to_open_clip(text), strict=False)
    strange = [name for name in missing if not name.startswith("visual.") and name != "logit_scale"]
    if strange or unknown:
        raise ValueError(f"the text tower does not fit open_clip's: {strange + list(unknown)}")
    return model


def lock(model: open_clip.CLIP, which: str) -> None:
    """Freeze the towers of `which` (one of `LOCKS`); the temperature is always trained."""
    for name, parameter in model.named_parameters():
        if name.startswith("visual."):
            frozen = which in ("image", "both") and not name.startswith(("visual.head.", "visual.proj"))
        else:
            frozen = which in ("text", "both") and name != "logit_scale"
        parameter.requires_grad_(not frozen)


def augment(pictures: np.ndarray, rows: Sequence[int], rng: np.random.Generator, size: int = 64) -> Tensor:
    """Augmented pictures: shifted, scaled by 0.7 to 1.15, mirrored. float32 (len(rows), 3, size, size)."""
    x = torch.from_numpy(np.ascontiguousarray(pictures[list(rows)])).permute(0, 3, 1, 2).float() / 255
    n = len(rows)
    zoom = torch.from_numpy(1 / rng.uniform(0.7, 1.15, n)).float()
    flip = torch.from_numpy(rng.choice([-1.0, 1.0], n)).float()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-0.15, 0.15, (n, 2))).float()
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    small = F.interpolate(x, (size, size), mode="area")
    moved = 1 - F.grid_sample(1 - small, grid, align_corners=False)  # white outside
    return (moved - convert.MEAN) / convert.STD


def train(pictures: np.ndarray, records: Sequence[Any], model: open_clip.CLIP, tokenizer: CLIPTokenizer,
          folder: Path, *, device: torch.device, steps: int, minutes: float, batch: int = 128, chunk: int = 64,
          peak: float = 1e-3, seed: int = 0, caption: Captioner = as_written) -> open_clip.CLIP:  # fmt: skip
    """Train the unlocked parameters of `model`, or resume training, in `folder`; return the EMA of the CLIP.

    Batch normalisation keeps its statistics, as rows must be independent (`contrast.backward`).

    Args:
        pictures, records: row i of one belongs to row i of the other. A record is what `caption` makes a caption from,
            each time that it is drawn; by default the caption.
        batch: pairs in a step's loss; all other pairs are negatives.
        chunk: pairs per forward pass; a larger batch uses gradient caching.
    """
    torch.manual_seed(seed)
    model = _training(model.to(device))
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    ema = Ema(model, 0.99)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes, log_every=10,
        fixed={"data": fingerprint(pictures, records), "what learns": fingerprint(learning)},
        changeable={"batch": batch, "rate": peak, "seed": seed},
    )  # fmt: skip
    rng, words = np.random.default_rng([seed, run.step]), random.Random(f"{seed}-{run.step}")
    batch, text_learns = min(batch, len(records)), model.token_embedding.weight.requires_grad

    def image(rows: Tensor) -> Tensor:
        with autocast(device):
            return F.normalize(model.encode_image(rows).float(), dim=-1)

    def text(tokens: Tensor) -> Tensor:
        with autocast(device):
            return F.normalize(model.encode_text(tokens).float(), dim=-1)

    for _ in run:
        run.rate(peak, warmup=20)
        rows = rng.choice(len(records), batch, replace=False).tolist()
        texts = [caption(records[i], words) for i in rows]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
                           return_tensors="pt").input_ids.to(device)  # fmt: skip
        x = augment(pictures, rows, rng, model.visual.image_size[0]).to(device)  # (B, 3, S, S)
        same = (tokens[:, None] == tokens).all(-1)  # (B, B)
        optimizer.zero_grad(set_to_none=True)
        objective = partial(contrast.loss, log_scale=model.logit_scale, same=same)
        if text_learns:
            value, accuracy = contrast.backward([image, text], [x, tokens], objective, chunk)
        else:
            with torch.no_grad():
                objective = partial(objective, text=text(tokens))
            value, accuracy = contrast.backward([image], [x], objective, chunk)
        run.share(learnt)
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # at most 100, as in the paper
        ema.update(model)
        run.log(loss=value, accuracy=accuracy, temperature=1 / model.logit_scale.exp())
    return ema.module


def _training(model: open_clip.CLIP) -> open_clip.CLIP:
    """Training mode, except for batch normalisation."""
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()
    return model
