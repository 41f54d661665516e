"""Attention kernels: which of them work here, and why not.

Only the probe for ``studio doctor`` so far: each backend is tried on a small problem, (batch, heads, tokens, head_dim)
= (1, 1, 16, 64), in a dtype that it serves. Knows nothing of models.

Try it: ``python -c "from studio.attention import backends; print(*backends('cpu'), sep='\\n')"``
"""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass

_SDPA = {
    "sdpa-flash": "FLASH_ATTENTION",
    "sdpa-efficient": "EFFICIENT_ATTENTION",
    "sdpa-cudnn": "CUDNN_ATTENTION",
    "sdpa-math": "MATH",
}


@dataclass(frozen=True)
class Backend:
    """An attention backend: `reason` says why it is not `available`, and is empty where it is."""

    name: str
    available: bool
    reason: str = ""


def backends(device: str) -> list[Backend]:
    """Try every backend on `device` (``cpu``, ``cuda``, ``cuda:N``). Imports torch."""
    from studio import torch_setup

    torch_setup.prepare()
    probes: dict[str, Callable[[], str]] = {name: _sdpa_probe(kind, device) for name, kind in _SDPA.items()}
    probes["flex"] = lambda: _flex(device)
    probes["xformers"] = lambda: _xformers(device)
    found = []
    for name, probe in probes.items():
        reason = probe()
        found.append(Backend(name, not reason, reason))
    return found


def _sdpa_probe(kind: str, device: str) -> Callable[[], str]:
    return lambda: _sdpa(kind, device)


def _sdpa(kind: str, device: str) -> str:
    """Run one kernel of scaled_dot_product_attention alone; torch tells its reasons as warnings."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            q = torch.zeros(1, 1, 16, 64, device=device, dtype=dtype)  # (B, H, T, D)
            with torch.inference_mode(), sdpa_kernel(getattr(SDPBackend, kind)):
                scaled_dot_product_attention(q, q, q)
        except RuntimeError as error:
            if device == "cpu":
                return "torch has no such kernel for the CPU"
            reasons = [str(each.message).split(" (Triggered", 1)[0] for each in told]
            return "; ".join(dict.fromkeys(reasons)) or str(error).splitlines()[0]
    return ""


def _flex(device: str) -> str:
    """FlexAttention is worth using only compiled, so a compiler has to be here."""
    try:
        importlib.import_module("torch.nn.attention.flex_attention")
    except ImportError as error:
        return f"this torch has none: {error}"
    if device == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        return "" if shutil.which(compiler) else f"compiling needs a C++ compiler, and `{compiler}` is not installed"
    return "" if importlib.util.find_spec("triton") else "compiling needs triton, which is not installed"


def _xformers(device: str) -> str:
    if importlib.util.find_spec("xformers") is None:
        return "not installed: `pip install 'multimodal-studio[xformers]'`"
    try:
        importlib.import_module("xformers.ops")
    except (ImportError, OSError, RuntimeError) as error:
        return f"does not import: {type(error).__name__}: {error}"
    return "its kernels need CUDA" if device == "cpu" else ""
