"""Writing down how media were made: everything the host saw, as a Recipe.

Knows nothing of the loop's order or of stores.

Try it: ``python -c "from studio.engine.provenance import libraries; print(libraries())"``
"""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import UTC, datetime
from functools import cache

from studio import torch_setup
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
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _uses_torch(entry: Entry) -> bool:
    """Whether the threads of torch are a fact of this request: torch may be loaded for another's sake."""
    return bool(entry.model and entry.model.weights) or bool(entry.rng and entry.rng.drew_torch)


def _seen(entry: Entry) -> dict[str, list[str]]:
    """Facts that the host saw itself: the attention backends that served the request's calls."""
    return {"attention": sorted(entry.attention)} if entry.attention else {}


def make_recipe(entry: Entry, media: Media) -> Recipe:
    """Write the recipe of what a request made. Raises ValidationError if the generator's facts are no JSON."""
    request, model, state = entry.request, entry.model, entry.state
    assert model is not None
    assert state is not None
    generator = request.generator
    return Recipe(
        generator=generator.name,
        generator_version=generator.version,
        plugin=request.plugin,
        kind=generator.output.kind,
        inputs=request.inputs.as_recipe(),
        seed=request.seed,
        weights=model.weights,
        libraries=libraries(),
        device=model.device,
        dtype=model.dtype,
        threads=entry.threads or (torch_setup.usual_threads() if _uses_torch(entry) else None),
        batch_width=BatchWidth(min=max(1, entry.width_min), max=max(1, entry.width_max)),
        facts=generator.facts(model.value, request.inputs) | _seen(entry),
        notices=tuple(entry.notices),
        invariant=request.invariant or None,
        steps=state.position,
        output=media.ref,
        parents=tuple(dict.fromkeys([*(each.sha256 for each in request.inputs.media()), *request.parents])),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(entry.timing.work, 6),
    )
