"""The stepped form of a diffusers pipeline: `start`, `step` and `finish` over guests, for generators.

A step runs the module calls for which the given guests are parked, merged where possible, until each guest's scheduler
has made its next step. A guest that is further than its state (a retried or repeated step) repeats its calls; one that
is gone (its model was evicted, or it is resumed) is made again: see `Guest.rebuild`.

Try it: ``pytest tests/studio/diffusion/test_stepping.py``
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import json
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import studio
from studio.diffusion.calls import Batcher, ModuleCall, cloned, fault, key_of, refused, runs_alone, shape_of, zeros_like
from studio.diffusion.guest import GuestRun, Record, modules_of
from studio.diffusion.predicted import predicted_sample
from studio.diffusion.schedulers import with_sampler
from studio.diffusion.shared import Shared
from studio.errors import InputError, describe

_ENCODERS = ("text_encoder", "image_encoder", "vision_encoder", "vae", "vqgan", "vqvae", "audio_vae", "movq", "vocoder",
             "safety_checker", "adapter", "connectors", "image_normalizer", "image_noising",
             "language_model")  # fmt: skip
"""Beginnings of the names of components that do not denoise."""
_numbers = itertools.count()


@functools.cache
def resuming() -> frozenset[str]:
    """Classes that ``python -m benchmarks.pipelines`` has seen to resume at each step (docs/pipelines.md)."""
    return frozenset(json.loads((Path(__file__).parent / "resumes.json").read_text("utf-8")))


class PipelineModel:
    """A pipeline on one device; its modules may be on the device or not, as the host decides.

    `resumes` has the classes of pipelines whose loop can be entered at a saved step, because it carries nothing but its
    latents, scheduler and random generator. With others, the steps are computed again from the first.
    """

    def __init__(self, pipe: Any, device: str) -> None:
        self.pipe, self.device, self.resumes = pipe, torch.device(device), resuming()
        self.components = modules_of(pipe)
        self.shared = Shared(self.components)
        self.batcher = Batcher(self.components.__getitem__, self.shared)
        self._pipelines: dict[tuple[str, str], Any] = {}

    def pipeline(self, task: str = "", sampler: str = "") -> Any:
        """The pipeline, or another class of diffusers' over the same components, such as its image-to-image one; with
        its own scheduler, or that of a sampler (schedulers.py). Raises InputError for one that does not fit.
        """
        if (task, sampler) not in self._pipelines:
            pipe = _of_class(task, self.pipe) if task else self.pipe
            if sampler:
                pipe, scheduler = copy.copy(pipe), with_sampler(pipe, sampler)
                pipe.scheduler = scheduler
            pipe.set_progress_bar_config(disable=True)
            self._pipelines[task, sampler] = pipe
        return self._pipelines[task, sampler]

    def resumes_at_step(self, task: str = "") -> bool:
        """Whether the loop of this pipeline can be entered at a saved step."""
        cached = any(getattr(each, "is_cache_enabled", False) for each in self.components.values())
        return type(self.pipeline(task)).__name__ in self.resumes and not cached


def _of_class(task: str, pipe: Any) -> Any:
    import diffusers

    known = inspect.signature(getattr(diffusers, task).__init__).parameters
    settings = {name: value for name, value in pipe.config.items() if name in known and not name.startswith("_")}
    return getattr(diffusers, task)(**settings | {n: each for n, each in pipe.components.items() if n in known})


@dataclass(eq=False)
class Guest:
    """A request's guest: its current run, and what makes the call again.

    Attributes:
        arguments: of the pipeline's call, without the random generator.
        task, sampler: the class of the pipeline and the sampler, if they are not the model's own.
        before: outputs of the calls before the first denoising step.
        taken: the calls of the last step.
        zeros: outputs of the calls of the loop, with zeros that take no memory, by the calls' keys.
    """

    arguments: Mapping[str, Any]
    seed: int
    task: str = ""
    sampler: str = ""
    owner: str = field(default_factory=lambda: f"request-{next(_numbers)}")
    run: GuestRun | None = None
    before: list[Any] = field(default_factory=list)
    taken: list[ModuleCall] = field(default_factory=list)
    zeros: dict[Hashable, Any] = field(default_factory=dict)

    def begin(self, model: PipelineModel) -> GuestRun:
        """A new run, parked at its first call."""
        self.close()
        generator = torch.Generator("cpu").manual_seed(self.seed)
        run = GuestRun(
            model.pipeline(self.task, self.sampler), {**self.arguments, "generator": generator}, generator, model.device
        )
        self.run = run
        weakref.finalize(self, run.close)
        run.go_on(model.components, model.shared)
        return run

    def close(self) -> None:
        """End the current run."""
        if self.run is not None:
            self.run.close()
            self.run = None

    def rebuild(self, model: PipelineModel, state: GuestState) -> GuestRun:
        """A new run, brought to the state's position.

        The calls before the first step are answered from memory. If the pipeline `resumes`, those of the loop are
        answered with zeros, and the state's record is restored at its position; else they are computed again.
        """
        run = self.replay(
            model, state.position, state.record if model.resumes_at_step(self.task) and state.position else None
        )
        _raise(self, run)
        self.taken = []
        return run

    def replay(self, model: PipelineModel, position: int, restore: Record | None) -> GuestRun:
        """A new run at a position: with a record for it in place of what its calls would give, or computed."""
        run = self.begin(model)
        run.restore = restore
        for output in self.before:
            run.go_on(model.components, model.shared, cloned(output))
        while run.position < position and run.pending is not None:
            output = self._zeros(model, run.pending) if restore is not None else None
            if output is None:
                output = model.batcher.run([(run.pending, self.owner)])[0]
                self.remember(model, run.pending, output)
                output = output if restore is None else zeros_like(output)
            run.go_on(model.components, model.shared, output)
        return run

    def remember(self, model: PipelineModel, call: ModuleCall, output: Any) -> None:
        """Keep the form of a call's output, for `replay`."""
        module = model.components[call.component]
        if not runs_alone(call, module) and (key := key_of(call, module)) not in self.zeros:
            self.zeros[key] = shape_of(output)

    def _zeros(self, model: PipelineModel, call: ModuleCall) -> Any:
        found = self.zeros.get(key_of(call, model.components[call.component]))
        return None if found is None else zeros_like(found)

    def at(self, model: PipelineModel, state: GuestState) -> GuestRun:
        """The run at the state's position, or further by the step that follows it."""
        run = self.run
        if run is None or run.error is not None or run.position < state.position or self._passed(state):
            return self.rebuild(model, state)
        return run

    def _passed(self, state: GuestState) -> bool:
        """Whether the run is further than the step after the state."""
        assert self.run is not None
        before = self.run.position - 1
        return self.run.position > state.position and before > state.position


@dataclass(frozen=True, kw_only=True, eq=False)
class GuestState(studio.State):
    """A request at a step of its pipeline's loop.

    Attributes:
        latents: what the scheduler returned last, or None before the first step.
        solver: the scheduler's attributes; floating-point tensors as bytes, since some are infinite on purpose.
        generator: the state of the random generator.
        inputs: those of the request.
        key: equal for requests that wait for calls that may be merged.
        ended: whether only `finish` is left.
    """

    guest: Guest = studio.unsaved()
    key: Hashable = studio.unsaved()
    inputs: Any = studio.unsaved()
    latents: Tensor | None = None
    solver: dict[str, Any] = field(default_factory=dict)
    generator: Tensor | None = None
    ended: bool = False

    @property
    def done(self) -> bool:
        """Whether only `finish` is left."""
        return self.ended

    @property
    def record(self) -> Record:
        """The last completed step. Call it only after one."""
        assert self.latents is not None
        assert self.generator is not None
        solver = {name: _unpacked(value) for name, value in self.solver.items()}
        return Record(self.position, self.latents, solver, self.generator)


def start(
    model: PipelineModel, arguments: Mapping[str, Any], rng: studio.Rng, inputs: Any = None, task: str = "",
    sampler: str = "",
) -> GuestState:  # fmt: skip
    """Begin a pipeline's call with these arguments, and run what comes before the first denoising step.

    `task` is the class of a pipeline over the model's components, and `sampler` a name of schedulers.py, if they are
    not the model's own. Raises InputError for arguments that the pipeline rejects, and what else it raises.
    """
    guest = Guest(arguments, rng.torch_seed, task, sampler)
    with plain_mode():
        run = guest.begin(model)
        while run.pending is not None and not _denoises(run.pending) and not run.position:
            output = model.batcher.run([(run.pending, guest.owner)])[0]
            guest.before.append(cloned(output))
            run.go_on(model.components, model.shared, output)
    if isinstance(run.error, ValueError | TypeError | NotImplementedError) and refused(run.error):
        message = f"`{type(model.pipeline(task, sampler)).__name__}` rejects the request: {describe(run.error, 300)}"
        raise InputError("inputs", message, hint="change the input that it names") from run.error
    _raise(guest, run)
    return _state(model, guest, run, GuestState(guest=guest, key=None, inputs=inputs))


def with_notices(state: GuestState, notices: Sequence[str]) -> GuestState:
    """The state with notices before its own."""
    return replace(state, notices=tuple(dict.fromkeys((*notices, *state.notices))))


def step(model: PipelineModel, states: Sequence[GuestState]) -> list[GuestState]:
    """One step of each pipeline's scheduler. Raises what a module or a pipeline raises."""
    with plain_mode():
        guests = [(state.guest, state.guest.at(model, state)) for state in states]
        _repeat(model, [guest for (guest, run), state in zip(guests, states, strict=True)
                        if run.position > state.position])  # fmt: skip
        waiting = [(guest, run, state.position) for (guest, run), state in zip(guests, states, strict=True)]
        for guest, run, position in waiting:
            if run.position == position:
                guest.taken = []
        while waiting := [each for each in waiting if each[1].position == each[2] and each[1].pending is not None]:
            _round(model, [(guest, run) for guest, run, _ in waiting])
    return [_state(model, guest, run, state) for (guest, run), state in zip(guests, states, strict=True)]


def finish(model: PipelineModel, states: Sequence[GuestState]) -> list[Any]:
    """What the pipelines return: their last calls (decoding) run merged where possible."""
    with plain_mode():
        guests = [(state.guest, state.guest.at(model, state)) for state in states]
        while waiting := [each for each in guests if each[1].pending is not None]:
            _round(model, waiting)
    return [run.result for _, run in guests]


def preview(model: PipelineModel, state: GuestState) -> Any:
    """What the pipeline would return if its loop ended now with the predicted clean sample; None before a step."""
    run = state.guest.run
    if run is None or run.record is None or run.record.position != state.position or not run.record.taken:
        return None
    guest = state.guest
    clean = predicted_sample(model.pipeline(guest.task, guest.sampler).scheduler, run.record)
    other = replace(guest, run=None, taken=[], owner=f"{guest.owner}-preview")
    with plain_mode():
        last = replace(run.record, position=state.steps, latents=clean)
        made = other.replay(model, state.steps, last)
        while made.pending is not None:
            output = model.batcher.run([(made.pending, other.owner)])[0]
            made.go_on(model.components, model.shared, output)
    _raise(other, made)
    other.close()
    return made.result


def facts(model: PipelineModel, task: str = "") -> dict[str, Any]:
    """How a saved state of the pipeline is resumed."""
    return {"resume": "at its step" if model.resumes_at_step(task) else "restart"}


@contextmanager
def plain_mode() -> Iterator[None]:
    """Pipelines run without gradients, but not in inference mode, whose tensors they could not write into."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _round(model: PipelineModel, guests: Sequence[tuple[Guest, GuestRun]]) -> None:
    """Run the call for which each guest is parked, and let it go on."""
    for members in _grouped(model, [(guest, run.pending) for guest, run in guests if run.pending is not None]):
        outputs = model.batcher.run([(call, guest.owner) for guest, call in members])
        for (guest, call), output in zip(members, outputs, strict=True):
            run = guest.run
            assert run is not None
            guest.taken.append(call)
            guest.remember(model, call, output)
            run.go_on(model.components, model.shared, output)
            _raise(guest, run)


def _repeat(model: PipelineModel, guests: Sequence[Guest]) -> None:
    """Run the calls of the last step of these guests again, for a measurement; their outputs are known."""
    for i in range(max((len(guest.taken) for guest in guests), default=0)):
        calls = [(guest, guest.taken[i]) for guest in guests if i < len(guest.taken)]
        for members in _grouped(model, calls):
            model.batcher.run([(call, guest.owner) for guest, call in members])


def _grouped(model: PipelineModel, calls: Sequence[tuple[Guest, ModuleCall]]) -> list[list[tuple[Guest, ModuleCall]]]:
    groups: dict[Hashable, list[tuple[Guest, ModuleCall]]] = {}
    for guest, call in calls:
        groups.setdefault(key_of(call, model.components[call.component]), []).append((guest, call))
    return list(groups.values())


def _raise(guest: Guest, run: GuestRun) -> None:
    """Raise what the pipeline raised, for errors in its code a ModelError. The guest is made again if the step is
    retried.
    """
    if run.error is None:
        return
    error = run.error
    guest.close()
    if (found := fault(f"the pipeline `{run.name}`", error)) is not None:
        raise found from error
    raise error


def _denoises(call: ModuleCall) -> bool:
    return not call.component.rpartition(".")[2].startswith(_ENCODERS)


def _state(model: PipelineModel, guest: Guest, run: GuestRun, before: GuestState) -> GuestState:
    """The state after the run's last step."""
    pending, position = run.pending, run.position
    more = pending is not None and _denoises(pending)
    steps = max(run.steps, position + more, 1)
    ended = pending is None or (position >= steps and not more)
    if ended:
        position = steps = max(position, 1)
    notices = tuple(dict.fromkeys((*before.notices, *run.warnings)))
    made = replace(before, position=position, steps=steps, ended=ended, notices=notices,
                   key=None if pending is None else key_of(pending, model.components[pending.component]))  # fmt: skip
    if run.record is None:
        return made
    solver = {name: _packed(value) for name, value in run.record.solver.items() if _is_data(value)}
    return replace(made, latents=run.record.latents, solver=solver, generator=run.record.generator)


def _is_data(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_data(each) for name, each in value.items())
    return value is None or isinstance(value, bool | int | float | str | Tensor | np.ndarray | np.generic)


def _packed(value: Any) -> Any:
    """A scheduler's attribute as a state may hold it: arrays as tensors, tensors as bytes."""
    if isinstance(value, np.ndarray):
        return {"array": _packed(torch.from_numpy(np.ascontiguousarray(value)))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1)
        flat = flat.as_strided(flat.shape, (1,))  # one element may have any stride
        return {"tensor": flat.view(torch.uint8), "dtype": str(value.dtype).removeprefix("torch."),
                "shape": tuple(value.shape)}  # fmt: skip
    if isinstance(value, list | tuple):
        return [*map(_packed, value)] if isinstance(value, list) else (*map(_packed, value),)  # not a `torch.Size`
    return {"dict": {name: _packed(each) for name, each in value.items()}} if isinstance(value, dict) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_unpacked, value))
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return _unpacked(value["array"]).cpu().numpy()
    if "dict" in value:
        return {name: _unpacked(each) for name, each in value["dict"].items()}
    found: Tensor = value["tensor"].view(getattr(torch, value["dtype"])).reshape(value["shape"])
    return found
