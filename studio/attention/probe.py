"""Which attention backends work on a device, for ``studio doctor``: each is asked about a small problem."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """An attention backend: `reason` says why it is not `available`, and is empty where it is."""

    name: str
    available: bool
    reason: str = ""


def availability(device: str) -> list[Availability]:
    """Ask every backend about 16 tokens of one head of 64, in a usual dtype of `device`. Imports torch."""
    from studio.devices import torch_setup

    torch_setup.prepare()
    import torch

    from studio.attention.backends import own
    from studio.attention.problem import Problem

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    problem = Problem(1, 16, 16, 1, 1, 64, 64, dtype, torch.device(device))
    found = [(backend.name, "; ".join(backend.refuses(problem))) for backend in own()]
    return [Availability(name, not reason, reason) for name, reason in found]
