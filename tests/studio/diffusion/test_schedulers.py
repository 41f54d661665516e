"""Samplers by name: the scheduler that diffusers makes of the model's own config, for those that fit, and no others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.diffusion.schedulers import SAMPLERS, SPACINGS, fitting, with_sampler
from studio.diffusion.stepping import PipelineModel, finish, start, step
from studio.errors import InputError
from studio.loaders import diffusers as loaders

from . import tiny, whole

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # KDPM2, with NumPy 2
]


class Pipe:
    """A pipeline that only calls `set_timesteps(steps)`."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(self) -> None:
        self.scheduler.set_timesteps(3)


def written(folder: Path, kind: str, **values: Any) -> Any:
    """A scheduler as it is loaded, and the one of diffusers."""
    folder.mkdir(exist_ok=True)
    (folder / "scheduler_config.json").write_text(
        json.dumps({"_class_name": kind, "_diffusers_version": "0.6", **values})
    )
    made = getattr(whole.diffusers, kind).from_pretrained(folder, local_files_only=True)
    return loaders.scheduler(kind, folder), made


STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
          "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True, "trained_betas": None}  # fmt: skip


@pytest.mark.parametrize("name", [each for each in SAMPLERS if not each.startswith("flow-")])
def test_a_sampler_has_the_config_that_diffusers_gives_it(tmp_path: Path, name: str) -> None:
    """Also of keys that the model's own scheduler does not declare: PNDM's `clip_sample` is DDIM's."""
    ours, theirs = written(tmp_path, "PNDMScheduler", **STABLE)
    if name not in fitting(Pipe(ours)):
        with pytest.raises(InputError, match=r"needs the package `(scipy|torchsde)`"):
            with_sampler(Pipe(ours), name)
        return
    kind, changes = SAMPLERS[name]
    made, known = with_sampler(Pipe(ours), name), getattr(whole.diffusers, kind).from_config(theirs.config, **changes)
    keys = loaders.declared(kind)
    assert {key: made.config[key] for key in keys} == {key: known.config[key] for key in keys}
    assert made.config.get("clip_sample", False) is False


def test_a_guest_with_a_sampler_gives_the_bytes_of_diffusers_with_that_scheduler() -> None:
    pipe, arguments = tiny.build("StableDiffusionPipeline")
    model = PipelineModel(pipe, "cpu")
    with tiny.one_thread():
        states = [
            start(model, {**arguments(1), "output_type": "np"}, studio.Rng(1), sampler=name) for name in ("euler-a", "")
        ]
        while any(not state.done for state in states):
            states = [state if state.done else step(model, [state])[0] for state in states]
        for state, kind in zip(states, ("EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"), strict=True):
            plain = copy.copy(pipe)
            plain.scheduler = getattr(whole.diffusers, kind).from_config(pipe.scheduler.config)
            wanted = plain(**arguments(1), generator=torch.Generator().manual_seed(1), output_type="np")
            assert np.array_equal(tiny.pixels(finish(model, [state])[0]), tiny.pixels(wanted))


def test_a_replaced_sampler_can_be_replaced_again(tmp_path: Path) -> None:
    own = written(tmp_path, "PNDMScheduler", **STABLE)[0]
    once = with_sampler(Pipe(own), "euler-karras")
    assert once.config["use_karras_sigmas"]
    assert once.config["clip_sample"] is False
    again = with_sampler(Pipe(once), "ddim")
    assert {key: again.config[key] for key in STABLE if key != "skip_prk_steps"} == {
        key: value for key, value in STABLE.items() if key != "skip_prk_steps"
    }


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline"])
@pytest.mark.slow
def test_every_sampler_that_fits_draws(name: str) -> None:
    pipe = whole.made(name)
    own, found = pipe.scheduler, {}
    try:
        for sampler in fitting(pipe):
            pipe.scheduler = own
            pipe.scheduler = with_sampler(pipe, sampler)
            result = pipe(**whole.arguments(name), generator=torch.Generator().manual_seed(1), output_type="np")
            found[sampler] = tiny.pixels(result)
            assert np.isfinite(found[sampler]).all(), sampler
    finally:
        pipe.scheduler = own
    assert len({each.tobytes() for each in found.values()}) >= min(len(found), 3)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_suffix_names_the_spacing(tmp_path: Path, spacing: str) -> None:
    own = written(tmp_path, "EulerDiscreteScheduler", **STABLE, use_karras_sigmas=spacing != "karras")[0]
    if spacing == "beta":
        with pytest.raises(InputError, match=r"`dpmpp-2m-beta` needs the package `scipy`"):
            with_sampler(Pipe(own), "dpmpp-2m-beta")
        return
    made = with_sampler(Pipe(own), f"dpmpp-2m-{spacing}")
    assert [made.config[f"use_{each}_sigmas"] for each in SPACINGS] == [each == spacing for each in SPACINGS]
    with pytest.raises(InputError, match="does not fit"):
        with_sampler(Pipe(own), f"ddim-{spacing}")


@pytest.mark.parametrize(
    ("kind", "values", "unfit", "fit"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, {"pndm", "heun", "deis"}, {"euler", "unipc"}),
        ("CogVideoXDDIMScheduler", {"snr_shift_scale": 3.0}, {*SAMPLERS}, set()),
        ("DDPMScheduler", {"variance_type": "learned_range"}, {"ddim", "euler"}, {"ddpm", "dpmpp-2m"}),
        ("EDMEulerScheduler", {}, {*SAMPLERS}, set()),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"pndm", "ddim"}, {"flow-euler", "flow-heun"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, {"flow-dpmpp-2m", "flow-heun"}, {"flow-unipc"}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"flow-heun"}, {"flow-dpmpp-2m"}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 5.0}, {"euler-a"}, {"flow-euler"}),
    ],
)  # fmt: skip
def test_only_samplers_that_keep_the_models_noise_schedule_fit(
    tmp_path: Path, kind: str, values: dict[str, Any], unfit: set[str], fit: set[str]
) -> None:
    pipe = Pipe(written(tmp_path, kind, **values)[0])
    found = set(fitting(pipe))
    assert fit <= found
    assert not unfit & found
    for name in sorted(unfit)[:3]:
        with pytest.raises(InputError, match=f"`{kind}`|needs the package"):
            with_sampler(pipe, name)


@pytest.mark.parametrize("name", ["flow-euler", "flow-unipc", "flow-dpmpp-2m", "flow-heun"])
def test_flow_samplers_keep_the_shift(tmp_path: Path, name: str) -> None:
    for kind, key in (("FlowMatchEulerDiscreteScheduler", "shift"), ("UniPCMultistepScheduler", "flow_shift")):
        values = {key: 5.0, **({"use_flow_sigmas": True} if key == "flow_shift" else {})}
        made = with_sampler(Pipe(written(tmp_path, kind, **values)[0]), name)
        made.set_timesteps(4)
        noisy = made.sigmas[1].item() if name != "flow-heun" else made.sigmas[2].item()  # Heun has each level twice
        assert noisy == pytest.approx(5 * 0.75 / (1 + 4 * 0.75), abs=0.03)


@pytest.mark.parametrize("name", ["euler", "unipc-karras", "dpmpp-2m"])
def test_flow_can_be_left_out(tmp_path: Path, name: str) -> None:
    pipe = Pipe(written(tmp_path, "FlowMatchEulerDiscreteScheduler", shift=3.0)[0])
    plain, full = (with_sampler(pipe, each) for each in (name, f"flow-{name}"))
    assert type(plain) is type(full)
    assert plain.config == full.config


def test_an_unknown_sampler_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    pipe = Pipe(written(tmp_path, "FlowMatchEulerDiscreteScheduler")[0])
    with pytest.raises(InputError, match=r"`sampler` is 'eulr'; known for this model: `flow-euler`, `flow-heun`"):
        with_sampler(pipe, "eulr")
    with pytest.raises(InputError, match=r"`ddim` does not fit this model's `FlowMatchEuler"):
        with_sampler(pipe, "ddim")


def test_what_the_pipeline_passes_to_the_scheduler_must_be_taken() -> None:
    found = fitting(whole.made("FluxPipeline"))  # it passes noise levels and a shift
    assert "flow-unipc" in found
    assert not {"flow-heun", "flow-dpmpp-2m"} & set(found)
