"""Every setting of stock clips' schedulers: steps equal to diffusers' own, or a refusal that names the setting."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import studio
from studio.errors import WeightsError
from studio.loaders import diffusers as loaders
from studio_diffusion.samplers import History, Level, StepInputs, euler
from studio_video.single_step import SCHEDULERS, SingleStepScheduler, check_scheduler, check_solver
from studio_video.video import VideoGenerator

FLOW, DDIM = "FlowMatchEulerDiscreteScheduler", "CogVideoXDDIMScheduler"
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
CHANGES: dict[str, list[dict[str, Any]]] = {
    FLOW: [
        {}, {"num_train_timesteps": 500}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1},
        {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True}, {"base_image_seq_len": 100, "max_image_seq_len": 200},
    ],
    DDIM: [
        {}, {"num_train_timesteps": 500}, {"beta_start": 1e-3}, {"beta_end": 0.02}, {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": np.linspace(1e-4, 0.01, 1000).tolist()},
        {"clip_sample": False}, {"clip_sample_range": 0.3}, {"set_alpha_to_one": False}, {"steps_offset": 1},
        {"prediction_type": "sample"}, {"prediction_type": "v_prediction"}, {"sample_max_value": 2.0},
        {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}, ZERO, ZERO | {"snr_shift_scale": 1.0},
        ZERO | {"set_alpha_to_one": False},
    ],
}  # fmt: skip
REFUSED = [
    (FLOW, {"invert_sigmas": True}, "invert_sigmas"), (FLOW, {"stochastic_sampling": True}, "stochastic_sampling"),
    (DDIM, {"prediction_type": "flow"}, "prediction_type"), (DDIM, {"beta_schedule": "unheard"}, "unheard"),
    (DDIM, {"timestep_spacing": "odd"}, "timestep_spacing"), (FLOW, {"time_shift_type": "odd"}, "time_shift_type"),
]  # fmt: skip


def loaded(folder: Path, kind: str, changes: dict[str, Any]) -> Any:
    """The scheduler of a folder, as a pipeline gets it."""
    plain = {name: value for name, value in getattr(diffusers, kind)().config.items() if not name.startswith("_")}
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **plain, **changes}))
    return loaders.scheduler(kind, folder)


def net(x: Tensor, t: Any) -> Tensor:
    return torch.sin(3 * x + float(t) / 300) * 0.7 + 0.1 * x


def times(kind: str, scheduler: Any, steps: int, *, given: bool) -> None:
    """What pipelines call with: LTX gives the sigmas, and mu where the schedule shifts by the clip's size."""
    mu = {"mu": 0.9} if scheduler.config.get("use_dynamic_shifting") else {}
    if given:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **mu)
    else:
        scheduler.set_timesteps(steps, **mu)


@pytest.mark.parametrize(
    ("kind", "changes"), [(kind, changes) for kind in CHANGES for changes in CHANGES[kind]],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)  # fmt: skip
@pytest.mark.parametrize("steps", [2, 5, 7, 30])
def test_steps_are_those_of_diffusers(tmp_path: Path, kind: str, changes: dict[str, Any], steps: int) -> None:
    real = loaded(tmp_path, kind, changes)
    check_scheduler(tmp_path, real)
    for given in (False, True) if kind == FLOW else (False,):
        stock, one = deepcopy(real), SingleStepScheduler(real, torch.device("cpu"))
        one.at(None, steps)
        times(kind, stock, steps, given=given)
        times(kind, one, steps, given=given)
        x = theirs = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in stock.timesteps:
            theirs = stock.step(net(theirs, t), t, theirs, return_dict=False)[0]
        for now, after in zip(one.schedule[:-1], one.landings, strict=True):
            one.at(now)
            (x0,) = one.step(net(x, now[2]), now[2], x)
            levels = [Level(torch.tensor(alpha), torch.tensor(sigma)) for alpha, sigma in (now[:2], after)]
            x = euler(StepInputs(x, x0, *levels, History(levels[0], x0, x)))
        torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_a_last_step_before_the_first_time_is_left_out(tmp_path: Path) -> None:
    """`trailing` by 61, diffusers adds the time -1, which it takes for the noisiest."""
    one = SingleStepScheduler(loaded(tmp_path, DDIM, ZERO), torch.device("cpu"))
    one.at(None, 61)
    one.set_timesteps(61)
    assert len(one.schedule) == 62
    assert one.schedule[-2][2] >= 0
    assert one.schedule[-1] == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("kind", "changes", "word"), REFUSED)
def test_other_settings_are_refused_by_name(tmp_path: Path, kind: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(WeightsError, match=word):
        check_scheduler(tmp_path, loaded(tmp_path, kind, changes))


@pytest.mark.parametrize(
    "kind", sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and name not in SCHEDULERS)
)
def test_other_solvers_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(WeightsError, match=f"has a `{kind}`, which is not supported"):
        check_solver(tmp_path, kind)


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "CogVideoXDPMScheduler"])
def test_published_solvers_are_refused_before_anything_is_loaded(tmp_path: Path, kind: str) -> None:
    """Every part is missing, and the refusal is about the scheduler all the same, with what to put in its place."""
    index = {"_class_name": "WanPipeline", "scheduler": ["diffusers", kind], "vae": ["diffusers", "AutoencoderKLWan"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=f"has a `{kind}`") as raised:
        VideoGenerator(tmp_path).load(studio.ModelRef(), "cpu", "float32")
    assert "put a " in str(raised.value)
