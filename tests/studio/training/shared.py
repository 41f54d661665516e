"""A linear model trained by a Run on a fixed batch of eight rows, of which each process takes its share.

`shared.py FOLDER STEPS`: under torchrun with several processes, or alone; both must come to the same weights.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from studio.training.ema import Ema
from studio.training.run import Run


def train(folder: Path, steps: int, pause: float = 0.0) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    run = Run(folder, model, optimizer, Ema(model, 0.9), steps=steps, log_every=1)
    for step in run:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))[run.peers.rank :: run.peers.count]
        run.rate(0.05, warmup=1)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        run.share(model.parameters())
        optimizer.step()
        run.ema.update(model)
        run.log(loss=0.0)
        # In one piece, as the processes share a pipe, and torchrun's Python does not buffer.
        sys.stdout.write(f"{step}\n")
        time.sleep(pause)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
