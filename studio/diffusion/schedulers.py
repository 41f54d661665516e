"""Schedulers of diffusers by the names that people use for samplers: ``euler-a``, ``dpmpp-2m-karras``, ``flow-unipc``.

A model's scheduler can be replaced by another of the same kind (noise levels by betas, or flow matching) that takes
over everything in its config that shapes the noise schedule; others do not fit.

Try it: ``with_sampler(pipe, "dpmpp-2m-karras")``
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from studio.errors import InputError
from studio.loaders import diffusers as loaders

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp-2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpmpp-3m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpmpp-sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa-solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow-lcm": ("FlowMatchLCMScheduler", {}),
    "flow-unipc": ("UniPCMultistepScheduler", {}),
    "flow-dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "flow-dpmpp-2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "flow-deis": ("DEISMultistepScheduler", {}),
}
"""Name -> the class in diffusers, and what is set in its config besides the model's own values."""
SPACINGS = ("karras", "exponential", "beta")
"""Spacings of the noise levels, as a suffix of a sampler's name: ``euler-karras``."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,), "rescale_betas_zero_snr": (False, None), "snr_shift_scale": (1.0, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "sigma_min": (None,), "sigma_max": (None,), "use_dynamic_shifting": (False, None), "shift": (1.0, None),
    "shift_terminal": (None, 0), "invert_sigmas": (False, None), "stochastic_sampling": (False, None),
    "flow_shift": (1.0, None), "time_shift_type": ("exponential", None),
}  # fmt: skip
"""Keys of a config that shape the noise schedule, with the values that change nothing."""
_NEEDS = {"LMSDiscreteScheduler": "scipy", "DPMSolverSDEScheduler": "torchsde"}


def with_sampler(pipe: Any, name: str) -> Any:
    """A new scheduler for a pipeline: the sampler `name`, with the noise schedule of the pipeline's own scheduler.

    For a model of flow matching ``flow-`` may be left out: ``euler`` is ``flow-euler``, which other models cannot have.
    Raises InputError for an unknown sampler, one that does not fit the model, and one whose package is not installed.
    """
    base, spacing = _parsed(name)
    if f"flow-{base}" in SAMPLERS and is_flow(pipe.scheduler.config):
        base = f"flow-{base}"
    if base not in SAMPLERS:
        raise InputError("sampler", f"`sampler` is {name!r:.60}; known for this model: {_listed(pipe)}",
                         hint="choose one of them")  # fmt: skip
    kind, _ = SAMPLERS[base]
    package = "scipy" if spacing == "beta" else _NEEDS.get(kind, "")
    if package and find_spec(package) is None:
        raise InputError(
            "sampler", f"the sampler `{name}` needs the package `{package}`", hint=f"pip install {package}"
        )
    values = _values(pipe.scheduler, base, spacing)
    if values is None or not _takes_what_is_passed(pipe, kind):
        message = f"the sampler `{name}` does not fit this model's `{type(pipe.scheduler).__name__}`"
        raise InputError("sampler", message, hint=f"choose one of {_listed(pipe)}")
    return loaders.scheduler_of(kind, values)


def fitting(pipe: Any) -> list[str]:
    """The samplers that fit a pipeline and are installed, without the suffixes for spacings."""
    return [
        name
        for name, (kind, _) in SAMPLERS.items()
        if (kind not in _NEEDS or find_spec(_NEEDS[kind]) is not None)
        and _values(pipe.scheduler, name, "") is not None
        and _takes_what_is_passed(pipe, kind)
    ]


def _listed(pipe: Any) -> str:
    return ", ".join(f"`{each}`" for each in fitting(pipe)) or "none but its own"


def _parsed(name: str) -> tuple[str, str]:
    """The name without the suffix for a spacing, and the spacing."""
    base, _, last = name.rpartition("-")
    return (base, last) if last in SPACINGS and base in SAMPLERS else (name, "")


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is one of flow matching."""
    return (
        bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction" or _has_shift(config)
    )


def _has_shift(config: Mapping[str, Any]) -> bool:
    return "shift" in config and "beta_start" not in config


def _values(own: Any, name: str, spacing: str) -> dict[str, Any] | None:
    """The config of a sampler for a model with the scheduler `own`, or None if it does not fit."""
    kind, changes = SAMPLERS[name]
    declared = loaders.declared(kind)
    config = dict(own.config)
    flow = name.startswith("flow-")
    if flow != is_flow(config) or not (flow or {"beta_start", "beta_schedule"} <= config.keys()):
        return None
    known = {key: value for key, value in config.items() if key not in (config.get("_use_default_values") or ())}
    known = {key: value for key, value in known.items() if not key.startswith("_")} | changes
    if flow and type(own).__name__ != kind:
        known |= _as_flow(config, declared)
    if spacing:
        if f"use_{spacing}_sigmas" not in declared:
            return None
        known |= {f"use_{each}_sigmas": each == spacing for each in SPACINGS if f"use_{each}_sigmas" in declared}
    shaping = {key: config[key] for key in _NEUTRAL if key in config and config[key] not in _NEUTRAL[key]}
    if flow:
        shaping = {{"shift": "flow_shift", "flow_shift": "shift"}.get(key, key) if key not in declared else key: value
                   for key, value in shaping.items()}  # fmt: skip
    return known if shaping.keys() <= {*declared} else None


def _as_flow(config: Mapping[str, Any], declared: list[str]) -> dict[str, Any]:
    """What a scheduler of another class needs to be set for the same flow."""
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if "use_flow_sigmas" not in declared:
        return {"shift": shift}
    return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}


def _takes_what_is_passed(pipe: Any, kind: str) -> bool:
    """Whether a scheduler class takes the noise levels and shift that the pipeline's call passes to `set_timesteps`."""
    call = inspect.unwrap(type(pipe).__call__).__code__
    passed = {"sigmas"} if "sigmas" in call.co_varnames and "linspace" in call.co_names else set()
    if pipe.scheduler.config.get("use_dynamic_shifting") or (
        "mu" in call.co_varnames and "use_dynamic_shifting" not in call.co_consts
    ):
        passed |= {"mu"}
    return passed <= loaders.schedule_arguments(kind)
