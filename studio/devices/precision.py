"""The fast dtype of a device: bfloat16 if its hardware supports it, else float32. Loads no torch until called.

Try it: `fast_dtype("cpu")` is `float32` on many laptops
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio import devices

if TYPE_CHECKING:
    import torch


def fast_dtype(device: str) -> str:
    """The dtype to load a model in, as `Generator.dtype_for` says it, for ``cpu``, ``cuda`` or ``cuda:1``."""
    return devices.device(device).fast_dtype()


def autocast(device: torch.device) -> torch.autocast:
    """The autocast context for a model with float32 weights: matrix products in `fast_dtype`, the rest in float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device.type) == "bfloat16")
