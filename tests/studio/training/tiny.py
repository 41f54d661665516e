"""A tiny model trained by a Run whose loop draws each step's numbers from `run.step`; as a program, one to interrupt.

`tiny.py FOLDER STEPS` trains, prints each step's number and pauses after it. `tiny.py FOLDER STEPS KILLS SEED` trains
in children that it kills (SIGKILL) at random moments, looks at the checkpoint after each, and lets the last one end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from studio.training.ema import Ema
from studio.training.run import Run


def start(folder: Path, steps: int = 12, width: int = 8, **options: Any) -> Run:
    """A run of 4 -> `width` -> 1 with a batch norm (float and integer buffers) and AdamW, always from equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return Run(folder, model, optimizer, Ema(model, 0.9), **{"steps": steps, "log_every": 2, **options})


def one_step(run: Run) -> None:
    """Everything that a training step does."""
    rng = torch.Generator().manual_seed(run.step)
    x = torch.randn(16, 4, generator=rng)
    loss = (run.model(x) - x.sum(1, keepdim=True)).square().mean()
    run.rate(0.05, warmup=3)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.ema.update(run.model)
    run.log(loss=loss.item(), size=len(x))


def finish(run: Run) -> dict[str, Tensor]:
    """Train to the end; return the final checkpoint's tensors: weights, average and optimizer."""
    for _ in run:
        one_step(run)
    return checkpoint(run.folder)


def checkpoint(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder's checkpoint, on no map of the file: it may be replaced under them."""
    return safetensors.torch.load((folder / "run.safetensors").read_bytes())


def kill_often(folder: Path, steps: int, kills: int, seed: int) -> None:
    """Print the step of the checkpoint after each kill, `-` where there is none yet."""
    import torch._dynamo  # noqa: F401 (an optimizer imports it at its first step: here once, not in each child)

    rng = random.Random(seed)
    for left in range(kills, -1, -1):
        child = os.fork()
        if not child:
            finish(start(folder, steps, save_every=-1))  # saves after every step
            os._exit(0)
        if left:
            time.sleep(rng.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert left or status == 0, status
        file = folder / "run.safetensors"
        if file.exists():
            checkpoint(folder)
            with safetensors.safe_open(file, framework="pt") as opened:
                print(opened.metadata()["counters"], flush=True)
        else:
            print("-", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums differ in their last bits by the number of threads
    if len(sys.argv) > 3:
        kill_often(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        interrupted = start(Path(sys.argv[1]), int(sys.argv[2]))
        for step in interrupted:
            one_step(interrupted)
            print(step, flush=True)
            time.sleep(0.02)
