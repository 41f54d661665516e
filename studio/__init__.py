"""Studio: a host for generative models of every kind, and the names that a plugin author needs.

Importing costs nothing: each name below is loaded when it is first used, and no torch before a model is.

Try it: ``python -c "import studio; print(studio.Studio().generators)"``
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studio import devices, errors, testing
    from studio.api import Studio
    from studio.devices import torch_setup
    from studio.diffusion.generator import PipelineGenerator
    from studio.errors import StudioError
    from studio.extensions import Command, Embedder, Method
    from studio.finite import pixels
    from studio.generator import Console, Generator, Rng, State, Trainer, unsaved
    from studio.hookspecs import hookimpl
    from studio.inputs import Inputs, addition_field, field, model_field, variant_field
    from studio.media import Audio, Embedding, Image, Media, Text, Video
    from studio.recipe import Recipe
    from studio.spec import JobSpec, ModelRef
    from studio.weights.loading import module
    from studio.workflow.builder import Workflow

__version__ = "0.1.0"

_MODULES = {"devices": "devices", "errors": "errors", "testing": "testing", "torch_setup": "devices.torch_setup"}
_HOMES = {
    "Audio": "media",
    "Console": "generator",
    "Command": "extensions",
    "Embedding": "media",
    "Embedder": "extensions",
    "Generator": "generator",
    "Image": "media",
    "Inputs": "inputs",
    "JobSpec": "spec",
    "Media": "media",
    "Method": "extensions",
    "ModelRef": "spec",
    "PipelineGenerator": "diffusion.generator",
    "Recipe": "recipe",
    "Rng": "generator",
    "State": "generator",
    "Studio": "api",
    "StudioError": "errors",
    "Text": "media",
    "Trainer": "generator",
    "Video": "media",
    "Workflow": "workflow.builder",
    "addition_field": "inputs",
    "field": "inputs",
    "hookimpl": "hookspecs",
    "model_field": "inputs",
    "module": "weights.loading",
    "pixels": "finite",
    "unsaved": "generator",
    "variant_field": "inputs",
}

__all__ = [
    "Audio",
    "Command",
    "Console",
    "Embedder",
    "Embedding",
    "Generator",
    "Image",
    "Inputs",
    "JobSpec",
    "Media",
    "Method",
    "ModelRef",
    "PipelineGenerator",
    "Recipe",
    "Rng",
    "State",
    "Studio",
    "StudioError",
    "Text",
    "Trainer",
    "Video",
    "Workflow",
    "addition_field",
    "devices",
    "errors",
    "field",
    "hookimpl",
    "model_field",
    "module",
    "pixels",
    "testing",
    "torch_setup",
    "unsaved",
    "variant_field",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"studio.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'studio' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"studio.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
