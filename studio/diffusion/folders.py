"""Pipelines from folders in diffusers' layout: ``model_index.json`` and a folder for each component.

Every component is loaded by `studio.loaders`, which runs no code of the model. Try it: ``load(Path("folder"), "cpu",
"float32")``
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import studio
from studio.diffusion.stepping import PipelineModel
from studio.errors import WeightsError
from studio.loaders import diffusers as loaders
from studio.loaders import read_config

INDEX = "model_index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors and configs of a folder. Raises WeightsError."""
    _index(folder)
    return [*sorted(folder.rglob("*.safetensors")), *sorted(folder.glob("*/*config.json"))]


def load(folder: Path, device: str, dtype: str) -> PipelineModel:
    """Load the pipeline of a folder. Raises WeightsError."""
    index = _index(folder)
    kind = str(index.get("_class_name"))
    parts = {name: _component(folder / name, str(value[1]), device, getattr(torch, dtype))
             for name, value in index.items() if isinstance(value, list) and value != [None, None]}  # fmt: skip
    return PipelineModel(loaders.pipeline(kind, index, folder / INDEX, parts), device)


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).exists():
        raise WeightsError(folder, f"`{folder}` is not a diffusers pipeline: it has no `{INDEX}`",
                           hint="give a folder that `save_pretrained` of diffusers wrote")  # fmt: skip
    return read_config(folder / INDEX)


def _component(folder: Path, kind: str, device: str, dtype: torch.dtype) -> Any:
    if kind.endswith("Scheduler"):
        return loaders.scheduler(kind, folder)
    files = sorted(folder.glob("*.safetensors"))
    return studio.module(partial(loaders.module, kind, folder), files, device=device, dtype=dtype)
