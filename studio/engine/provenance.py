"""Provenance: how an output was made, as a Recipe with everything that the host recorded.

Try it: ``studio show FILE``
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from studio import devices
from studio.devices import torch_setup
from studio.engine.scheduling.tracked import TrackedRequest
from studio.media import Media
from studio.recipe import BatchWidth, Recipe
from studio.spec import JobSpec
from studio.versions import libraries


def _uses_torch(entry: TrackedRequest) -> bool:
    """Whether this request used torch, so that its number of threads matters."""
    return bool(entry.model and entry.model.weights) or bool(entry.rng and entry.rng.drew_torch)


def _seen(entry: TrackedRequest, device: devices.Device) -> dict[str, object]:
    """Facts from the host: the attention backends of the request's calls, and the float32 precision of the device, if
    it has several.
    """
    seen = {"attention": sorted(entry.attention), "float32": device.float32}
    return {name: value for name, value in seen.items() if value}


def spec_of(entry: TrackedRequest, threads: int | None) -> JobSpec:
    """The request's JobSpec, completed with the dtype, threads and weight hashes that were used."""
    assert entry.model is not None
    spec = entry.request.spec
    model = spec.model
    if model.sha256 != entry.model.weights:
        model = model.model_copy(update={"sha256": entry.model.weights})
    return spec.model_copy(update={"model": model, "dtype": entry.model.dtype, "threads": threads})


def seen_of(entry: TrackedRequest) -> dict[str, Any]:
    """Fields of recipes and checkpoints besides the JobSpec."""
    assert entry.model is not None
    assert entry.state is not None
    return {
        "generator_version": entry.request.generator.version,
        "plugin": entry.request.plugin,
        "device": entry.model.device,
        "batch_width": BatchWidth(min=max(1, entry.width_min), max=max(1, entry.width_max)),
        "notices": tuple(entry.notices),
        "steps": entry.state.steps,
    }


def recipe_writer(entry: TrackedRequest) -> Callable[[Media], Recipe]:
    """Collect the facts of a finished request. Returns a function that writes the recipe of its output, which may take
    long, as it hashes the encoded output; it raises ValidationError if the generator's facts are not JSON.
    """
    request, model, state = entry.request, entry.model, entry.state
    assert model is not None
    assert state is not None
    device = devices.device(model.device)
    threads = entry.threads or (torch_setup.usual_threads() if _uses_torch(entry) else None)
    seen: dict[str, Any] = {
        **seen_of(entry),
        "spec": spec_of(entry, threads).portable(),
        "device": device.label,
        "libraries": libraries() | device.versions(),
        "facts": {**entry.facts, **state.facts, **_seen(entry, device)},
        "steps": state.position,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(entry.timing.work, 6),
    }
    parents = tuple(dict.fromkeys([*(each.sha256 for each in request.inputs.media()), *request.spec.parents]))

    def write(media: Media) -> Recipe:
        return Recipe(kind=request.generator.output.kind, output=media.ref, parents=parents, **seen)

    return write
