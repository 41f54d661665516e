"""Pre-train the decoder on a token file: next-token cross-entropy, AdamW, warm-up and cosine, accumulated gradients.

The rows of a step depend only on its number, so a stopped run resumes exactly. `corpus.py` creates the token file.

Try it: ``studio train gpt --texts my.txt --minutes 5``
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.devices.precision import autocast
from studio.files import new_folder
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run
from studio.weights import checksums
from studio_gpt import load
from studio_gpt.corpus import TokenFile, save_tokenizer
from studio_gpt.model import GPT
from studio_gpt.tokens import Tokens


def groups(model: torch.nn.Module, decay: float = 0.1) -> list[dict[str, object]]:
    """Parameter groups for AdamW: weight decay for matrices, none for norms and biases (Radford 2018)."""
    learning = [each for each in model.parameters() if each.requires_grad]
    return [
        {"params": [each for each in learning if each.dim() >= 2], "weight_decay": decay},
        {"params": [each for each in learning if each.dim() < 2], "weight_decay": 0.0},
    ]


def loss_of(model: torch.nn.Module, rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy of rows (B, T + 1), in nats."""
    with autocast(rows.device):
        logits = model(rows[:, :-1])  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.inference_mode()
def validate(model: torch.nn.Module, data: TokenFile, batch: int, most: int = 64) -> float:
    """The loss over the first `most` validation rows."""
    device = next(model.parameters()).device
    numbers = data.validation[:most]
    total = 0.0
    for start in range(0, len(numbers), batch):
        rows = torch.from_numpy(data.rows(numbers[start : start + batch])).to(device)
        total += float(loss_of(model, rows)) * len(rows)
    return total / len(numbers)


def train(model: GPT, data: TokenFile, folder: Path, *, steps: int, minutes: float = math.inf, batch: int = 8,
          accumulate: int = 1, peak: float = 2e-3, warmup: int = 50, save_every: float = 60.0) -> GPT:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA of the decoder.

    Args:
        batch: rows per forward pass, over all processes of the run.
        accumulate: gradient accumulation steps.
        peak: peak learning rate.
    """
    device = next(model.parameters()).device
    model.train()
    optimizer = torch.optim.AdamW(groups(model), lr=peak, betas=(0.9, 0.95))
    ema = Ema(model, 0.99)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes, save_every=save_every,
        fixed={"tokens": fingerprint(data.tokens), "context": data.context},
        changeable={"batch": batch, "accumulate": accumulate, "rate": peak},
    )  # fmt: skip
    mine = max(1, batch // run.peers.count)
    for step in run:
        run.rate(peak, warmup, floor=0.1)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in range(accumulate):
            first = ((step * accumulate + part) * run.peers.count + run.peers.rank) * mine
            rows = torch.from_numpy(data.rows([data.drawn(first + i) for i in range(mine)])).to(device)
            loss = loss_of(model, rows) / accumulate
            loss.backward()
            total += loss.detach()
        run.share(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        run.log(loss=total)
    made: Any = ema.module
    return made


def publish(model: GPT, tokens: Tokens, folder: Path) -> None:
    """Write a model in transformers' layout, with its tokenizer, chat template and `SHA256SUMS`."""
    with new_folder(folder) as part:
        load.save(model, part)
        save_tokenizer(tokens, part, model.config.context)
        checksums.write(part)
