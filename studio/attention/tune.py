"""Benchmarks of the backends on one problem, interleaved, so that other load affects all alike.

Used by ``studio attention``, never while a request runs.

Try it: ``studio attention --shape 1,1024,8,64 --tune``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from studio.attention.dispatch import Dispatch
from studio.attention.problem import Problem

ROUNDS = 7
ENOUGH_S = 2.0  # a backend that took longer in its first round is not measured again


def tensors(problem: Problem, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v for a problem."""
    rng = torch.Generator().manual_seed(seed)
    shapes = (
        (problem.batch, problem.queries, problem.heads, problem.head_dim),
        (problem.batch, problem.keys, problem.kv_heads, problem.head_dim),
        (problem.batch, problem.keys, problem.kv_heads, problem.value_dim),
    )
    q, k, v = (torch.randn(shape, generator=rng).to(problem.device, problem.dtype) for shape in shapes)
    return q, k, v


def measure(dispatch: Dispatch, problem: Problem, names: Sequence[str], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of a forward call by backend. None of the named backends may refuse the problem."""
    q, k, v = tensors(problem)
    taken: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for turn in range(rounds + 1):  # the first round compiles
            for name, times in taken.items():
                if turn > 1 and times[0] > ENOUGH_S:
                    continue
                begun = time.perf_counter()
                dispatch.attend(q, k, v, bias=problem.bias, backend=name)
                if problem.device.type == "cuda":
                    torch.cuda.synchronize(problem.device)
                if turn:
                    times.append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}
