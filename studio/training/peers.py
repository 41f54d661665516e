"""The processes that share one training run, as torchrun starts them; else one is alone.

    torchrun --nproc-per-node 2 -m studio train image

Gradients are averaged once a step, by torch.distributed (gloo on CPUs, NCCL on GPUs). On a busy CPU, two processes of
one thread waste far less than one of two threads, which wait for each other in every operator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(hours=4)  # what the first prepares for all may take longer than the usual half hour


class Peers:
    """This process among `count`; `rank` 0 is the one that writes files."""

    def __init__(self) -> None:
        """Join the others that torchrun's environment (`RANK`, `WORLD_SIZE`) tells of; `TrainingOptions.torch_device`
        has entered this process's card before.
        """
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group(timeout=_PATIENCE)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """What is within is done by the first process, then by the others, who find the files that it has made."""
        if self.rank:
            dist.barrier()
        yield
        if self.count > 1 and not self.rank:
            dist.barrier()

    @torch.no_grad()
    def average(self, gradients: Iterable[Tensor], told: Sequence[float]) -> list[float]:
        """Average the gradients over all processes, in place; return the sums of what each told. A barrier."""
        mine = list(gradients)
        flat = torch.cat([*(each.flatten() for each in mine), mine[0].new_tensor(told)])
        dist.all_reduce(flat)
        start = 0
        for each in mine:
            each.copy_(flat[start : start + each.numel()].view_as(each)).div_(self.count)
            start += each.numel()
        return [float(value) for value in flat[start:]]
