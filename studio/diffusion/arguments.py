"""The arguments of a pipeline's call from a request's inputs; a pipeline's own defaults hold for what is not given.

Try it: ``pytest tests/studio/diffusion/test_conformance.py``
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from studio.errors import InputError


def parameters(pipe: Any) -> Mapping[str, Any]:
    """The parameters of the pipeline's call and their defaults; `inspect.Parameter.empty` for required ones."""
    found = inspect.signature(type(pipe).__call__).parameters
    return {name: each.default for name, each in found.items() if name != "self"}


def arguments(pipe: Any, given: Mapping[str, tuple[str | None, Any]]) -> dict[str, Any]:
    """The arguments of the call for inputs by name, each as (the name of the argument, the value).

    A value of None is not given. Raises InputError for a value that the pipeline does not take.
    """
    takes, made = parameters(pipe), {}
    for name, (argument, value) in given.items():
        if value is None:
            continue
        if argument is None or argument not in takes:
            raise InputError(name, f"a `{type(pipe).__name__}` does not take `{name}`", hint=f"leave out `{name}`")
        made[argument] = value
    return made


def guidance_argument(pipe: Any) -> str | None:
    """The argument for classifier-free guidance, or for the guidance embedding of a distilled model."""
    takes = parameters(pipe)
    embeds = getattr(getattr(getattr(pipe, "transformer", None), "config", None), "guidance_embeds", None)
    if "true_cfg_scale" in takes and embeds is False:
        return "true_cfg_scale"
    return next((name for name in ("guidance_scale", "true_cfg_scale", "prior_guidance_scale") if name in takes), None)


def facts(pipe: Any, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """The pipeline, its scheduler, the steps and the guidance scale: as given, or the pipeline's defaults."""
    defaults, scheduler = parameters(pipe), type(getattr(pipe, "scheduler", None)).__name__
    name = guidance_argument(pipe)
    scale = defaults.get(name) if guidance is None and name else guidance
    count = steps or defaults.get("num_inference_steps")
    return {
        "pipeline": type(pipe).__name__, "noise_schedule": {"kind": scheduler, "steps": count}, "steps": count,
        **({} if scale is None else {"guidance": scale}), "sampler": scheduler,
    }  # fmt: skip
