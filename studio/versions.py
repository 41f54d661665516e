"""Versions of Python and of the libraries that can change outputs; none of them is imported.

Try it: ``python -c "from studio.versions import libraries; print(libraries())"``
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache

_LIBRARIES = {
    "studio": "multimodal-studio",
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "open_clip": "open-clip-torch",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pillow": "pillow",
    "av": "av",
}


@cache
def libraries() -> dict[str, str]:
    """Versions of Python and of the installed libraries that can change outputs; none of them is imported."""
    return {"python": platform.python_version()} | installed(_LIBRARIES)


def installed(distributions: Mapping[str, str]) -> dict[str, str]:
    """The versions of those of these distributions, by name, that are installed."""
    found: dict[str, str] = {}
    for name, distribution in distributions.items():
        try:
            found[name] = str(importlib.metadata.version(distribution))
        except Exception:  # it is not installed, or its metadata are damaged
            continue
    return found
