"""The attention backends that work on a device, for ``studio doctor``: each is tried on a small problem."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """An attention backend; `reason` says why it is not `available`, and is empty if it is."""

    name: str
    available: bool
    reason: str = ""


def availability(device: str) -> list[Availability]:
    """Try every backend with 16 tokens and one head of 64, in the usual dtype of `device`. Imports torch."""
    from studio.devices import torch_setup

    torch_setup.prepare()
    import torch

    from studio.attention.backends import built_in
    from studio.attention.problem import Problem

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    problem = Problem(1, 16, 16, 1, 1, 64, 64, dtype, torch.device(device))
    found = [(backend.name, "; ".join(backend.refuses(problem))) for backend in built_in()]
    return [Availability(name, not reason, reason) for name, reason in found]
