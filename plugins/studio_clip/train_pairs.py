"""Contrastive training on pictures and captions (Radford et al. 2021): open_clip's `CLIP`, its loss, its temperature.

The text tower comes from `train_text` and stays locked, so that the image model that it also serves keeps its meaning;
the image tower learns to meet it (the mirror of LiT, Zhai et al. 2022).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from studio.training.ema import Ema
from studio.training.run import Run
from studio_clip import captions, convert


def build(tower: CLIPTextModelWithProjection) -> open_clip.CLIP:
    """open_clip's CLIP with the given text tower, locked, and a fresh image tower (2.8M parameters)."""
    model = open_clip.CLIP(**convert.config(tower.config, tower.config.projection_dim), output_dict=True)
    missing, unknown = model.load_state_dict(convert.to_open_clip(tower), strict=False)
    strange = [name for name in missing if not name.startswith("visual.") and name != "logit_scale"]
    if strange or unknown:
        raise ValueError(f"the text tower does not fit open_clip's: {strange + list(unknown)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual.") or name == "logit_scale")
    return model


def views(
    pictures: np.ndarray, rows: Sequence[int], rng: np.random.Generator, size: int = convert.IMAGE_SIZE
) -> Tensor:
    """Pictures as they might stand: shifted, scaled by 0.7 to 1.15, mirrored. float32 (len(rows), 3, size, size)."""
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
    return (moved - convert.MEAN) / convert.DEVIATION


def train(pictures: np.ndarray, records: list[dict[str, Any]], tower: CLIPTextModelWithProjection,
          tokenizer: CLIPTokenizer, folder: Path, *, device: torch.device, steps: int, minutes: float,
          batch: int = 128, peak: float = 1e-3, seed: int = 0,
          begin: open_clip.CLIP | None = None) -> open_clip.CLIP:  # fmt: skip
    """Train, or go on training, in `folder`; return the averaged CLIP. Row i of `pictures` belongs to `records[i]`.

    A new run takes the image tower and the temperature of `begin`, if there is one.
    """
    torch.manual_seed(seed)
    model = build(tower).to(device)
    if begin is not None:
        model.visual.load_state_dict(begin.visual.state_dict())
        model.logit_scale.data.copy_(begin.logit_scale)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    ema = Ema(model, 0.998)
    run = Run(folder, model, optimizer, ema, steps=steps, minutes=minutes)
    rng, words = np.random.default_rng([seed, run.step]), random.Random(f"{seed}-{run.step}")
    context, batch = tokenizer.model_max_length, min(batch, len(records))
    for _ in run:
        run.rate(peak)
        rows = rng.choice(len(records), batch, replace=False).tolist()
        texts = [captions.caption(records[i], words) for i in rows]
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt"
        ).input_ids
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                text = model.encode_text(tokens.to(device), normalize=True)
            image = model.encode_image(views(pictures, rows, rng).to(device), normalize=True)
        logits = model.logit_scale.exp() * image.float() @ text.float().T  # (B, B)
        target = torch.arange(batch, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.share(learnt)
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # at most 100, as in the paper
        ema.update(model)
        run.log(loss=loss.item(), accuracy=(logits.argmax(1) == target).float().mean().item())
    return ema.module
