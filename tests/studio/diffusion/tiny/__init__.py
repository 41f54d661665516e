"""Tiny pipelines of diffusers with random weights, and the arguments of a request with number i for each.

`TINY` maps class names to builders, `FAMILIES` class names to families. Each module builds some families from the
parts in `parts`. Requests with unlike numbers have other prompts, guidance and numbers of steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from . import audio, controlnet, dit, flux, kandinsky, motion, qwen, sdxl, stable_diffusion, video
from .parts import Arguments, Builder, diffusers

__all__ = ["FAMILIES", "TINY", "Arguments", "build", "diffusers", "one_thread", "pixels"]
_MODULES = (stable_diffusion, sdxl, controlnet, flux, dit, qwen, kandinsky, video, motion, audio)
FAMILIES: dict[str, str] = {name: family for module in _MODULES for family, kinds in module.FAMILIES.items()
                            for name in kinds}  # fmt: skip
TINY: dict[str, Builder] = {name: build for module in _MODULES for kinds in module.FAMILIES.values()
                            for name, build in kinds.items()}  # fmt: skip


def build(name: str) -> tuple[Any, Arguments]:
    """A pipeline with weights from a fixed seed, and its arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TINY[name]()


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread, so that results do not depend on how work is divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pixels(result: Any) -> np.ndarray:
    """The pictures or clips of a pipeline's output."""
    return np.asarray(result.images if hasattr(result, "images") else result.frames)
