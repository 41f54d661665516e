"""Writing down how media were made: everything the host saw, as a Recipe.

Knows nothing of the loop's order or of stores.

Try it: ``python -c "from studio.engine.provenance import libraries; print(libraries())"``
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

from studio import devices, torch_setup
from studio.engine.entry import Entry
from studio.media import Media
from studio.recipe import BatchWidth, Recipe

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
    """Versions of Python and of the installed libraries that can change what is made; imports none of them."""
    found = {"python": platform.python_version()}
    for name, distribution in _LIBRARIES.items():
        try:
            found[name] = str(importlib.metadata.version(distribution))
        except Exception:  # it is not installed, or its metadata are damaged
            continue
    return found


def _uses_torch(entry: Entry) -> bool:
    """Whether the threads of torch are a fact of this request: torch may be loaded for another's sake."""
    return bool(entry.model and entry.model.weights) or bool(entry.rng and entry.rng.drew_torch)


def _seen(entry: Entry, device: devices.Device) -> dict[str, object]:
    """Facts that the host saw itself: the attention backends that served the request's calls, and how the device
    multiplies float32 numbers, where it has several ways.
    """
    seen = {"attention": sorted(entry.attention), "float32": device.float32}
    return {name: value for name, value in seen.items() if value}


def recipe_writer(entry: Entry) -> Callable[[Media], Recipe]:
    """Note what is known of a request that is finished; returns what writes the recipe of its media, which may take
    long: media are known by the hash of their encoding. That raises ValidationError if the generator's facts are not
    JSON.
    """
    request, model, state = entry.request, entry.model, entry.state
    assert model is not None
    assert state is not None
    generator, device = request.generator, devices.device(model.device)
    versions = libraries() | device.versions()
    seen: dict[str, Any] = {
        "weights": model.weights,
        "device": device.label,
        "dtype": model.dtype,
        "threads": entry.threads or (torch_setup.usual_threads() if _uses_torch(entry) else None),
        "batch_width": BatchWidth(min=max(1, entry.width_min), max=max(1, entry.width_max)),
        "facts": {**entry.facts, **_seen(entry, device)},
        "notices": tuple(entry.notices),
        "steps": state.position,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(entry.timing.work, 6),
    }

    def write(media: Media) -> Recipe:
        return Recipe(
            generator=generator.name,
            generator_version=generator.version,
            plugin=request.plugin,
            kind=generator.output.kind,
            inputs=request.inputs.as_recipe(),
            seed=request.seed,
            libraries=versions,
            invariant=request.invariant or None,
            output=media.ref,
            parents=tuple(dict.fromkeys([*(each.sha256 for each in request.inputs.media()), *request.parents])),
            **seen,
        )

    return write
