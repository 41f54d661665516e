"""Which numbers a device multiplies quickly: bfloat16 where its hardware does, else float32.

Processors without AVX-512 have to widen and round each bfloat16: a training step of the video model took thirteen
times as long on one. This module knows nothing of models. Loads no torch until asked.

Try it: `fast_dtype("cpu")` is `float32` on many laptops
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fast_dtype(device: str) -> str:
    """The dtype to load a model in, as `Generator.dtype_for` says it, for ``cpu``, ``cuda`` or ``cuda:1``."""
    import torch

    fast = device.startswith("cuda") or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast else "float32"


def autocast(device: torch.device) -> torch.autocast:
    """What to compute a model with float32 weights in: products in `fast_dtype`, what they leave wanting in float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device.type) == "bfloat16")
