"""Data-parallel training: the processes of one run, as started by torchrun; by default a single one.

    torchrun --nproc-per-node 2 -m studio train image

Gradients are averaged once per step by torch.distributed (gloo on CPUs, NCCL on GPUs). On a busy CPU two processes with
one thread are faster than one with two threads, which synchronize in every operator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(hours=4)  # preparation by the first process may take longer than the default half hour


class Peers:
    """This process among `count`; only `rank` 0 writes files."""

    def __init__(self) -> None:
        """Join the process group of torchrun's environment (`RANK`, `WORLD_SIZE`). `TrainingOptions.torch_device` must
        have selected this process's GPU before.
        """
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group(timeout=_PATIENCE)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which find its files."""
        if self.rank:
            dist.barrier()
        yield
        if self.count > 1 and not self.rank:
            dist.barrier()

    @torch.no_grad()
    def average(self, gradients: Iterable[Tensor], values: Sequence[float]) -> list[float]:
        """Average the gradients over all processes, in place; return the sums of `values`. A barrier."""
        mine = list(gradients)
        flat = torch.cat([*(each.flatten() for each in mine), mine[0].new_tensor(values)])
        dist.all_reduce(flat)
        start = 0
        for each in mine:
            each.copy_(flat[start : start + each.numel()].view_as(each)).div_(self.count)
            start += each.numel()
        return [float(value) for value in flat[start:]]
