"""Guests: a pipeline's own unmodified call, in a thread that is parked whenever it calls one of its modules.

The call runs on a shallow copy of the pipeline. Its modules are proxies: calling one parks the thread and gives the
call to the host, which runs it, alone or merged with those of other guests, and returns the output. Its schedulers are
copies; each `step` of the main one is recorded: the next latents, the scheduler's own state and the random generator's.
Only one of host and guest runs at a time.

A guest can be brought to an earlier record by running the call again (`Answers`): the modules called before the loop
are answered from memory, those in the loop with zeros, and at the recorded step everything is restored.

Try it: ``pytest tests/studio/diffusion/test_stepping.py``
"""

from __future__ import annotations

import copy
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from studio.diffusion.calls import ModuleCall
from studio.diffusion.shared import NONE, Draws, Shared

_PARKING = ("forward", "encode", "decode", "generate", "get_image_features", "get_text_features", "get_audio_features")
"""Methods of modules that park, besides the call itself."""
_LONGEST = 400  # characters of a warning


class Closed(BaseException):
    """Ends a guest's thread; pipelines do not catch it."""


_thread_state = threading.local()
"""The warnings of the guest of this thread."""


class _Listener(logging.Handler):
    """Gives the warnings that diffusers logs in a guest's thread to the guest."""

    def emit(self, record: logging.LogRecord) -> None:
        """Append it, once."""
        warnings: list[str] | None = getattr(_thread_state, "warnings", None)
        text = " ".join(record.getMessage().split())[:_LONGEST]
        if warnings is not None and text not in warnings:
            warnings.append(text)


@functools.cache
def _listen() -> None:
    logging.getLogger("diffusers").addHandler(_Listener(logging.WARNING))


@dataclass(frozen=True, eq=False)
class Record:
    """What a denoising loop carries from one step to the next.

    Attributes:
        position: the steps of the main scheduler so far.
        latents: the sample that its last step returned.
        solver: the attributes of the scheduler.
        generator: the state of the request's random generator.
        taken: the last step's (model output, timestep, sample), for previews.
    """

    position: int
    latents: Tensor
    solver: Mapping[str, Any]
    generator: Tensor
    taken: tuple[Any, ...] = ()


class GuestRun:
    """One run of a pipeline's call, in a thread of its own. All methods but `park` and `stepped` are the host's.

    Attributes:
        pending: the call that waits for the host, or None when the run has ended.
        record: the last completed step, or None.
        restore: the record that the run takes over when it comes to its position.
        components: the modules of the model, while the guest runs.
        settings: what the pipeline has set in them.
        warnings: what the pipeline logged as a warning.
        name: the pipeline's class.
    """

    def __init__(
        self, pipe: Any, arguments: Mapping[str, Any], generator: torch.Generator, device: torch.device
    ) -> None:
        self.pending: ModuleCall | None = None
        self.record: Record | None = None
        self.restore: Record | None = None
        self.components: Mapping[str, Any] = {}
        self.settings = NONE
        self.context: tuple[str, Mapping[str, Any]] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.warnings: list[str] = []
        self.generator, self.device = generator, device
        self._draws = Draws(generator.initial_seed(), device)
        self._closed = False
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._parked: SimpleQueue[None] = SimpleQueue()
        self._pipe, self._arguments, self.name = pipe, arguments, type(pipe).__name__
        self._timesteps: Callable[[], int] = lambda: 0
        self._thread = threading.Thread(target=self._call, name="studio-guest", daemon=True)

    @property
    def position(self) -> int:
        """The number of completed steps."""
        return self.record.position if self.record else 0

    @property
    def steps(self) -> int:
        """The number of steps that the pipeline plans, or 0 before it has planned them."""
        return self._timesteps()

    def go_on(self, components: Mapping[str, Any], shared: Shared, output: Any = None) -> None:
        """Give the output of the pending call, or begin, and wait until the guest parks or ends."""
        if self.ended or self._closed:
            return
        self.components = components
        since = shared.apply(self.settings)
        with self._draws.used():
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._inbox.put(output)
            self._parked.get()
        if self.ended:
            self._thread.join()  # its memory is free when this returns
        self.components = {}
        self.settings = shared.take(self.settings, since)
        if self.pending is not None and self.settings:
            self.pending = replace(self.pending, settings=self.settings)

    def close(self) -> None:
        """End the thread; its memory is free when this returns."""
        self._closed = True
        if self._thread.ident is None or self.ended:
            return
        self._inbox.put(Closed())
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _call(self) -> None:
        torch.set_grad_enabled(False)
        _listen()
        _thread_state.warnings = self.warnings
        try:
            pipe = guest_copy(self._pipe, self)
            self._pipe = None
            self._timesteps = functools.partial(_planned, weakref.ref(pipe))
            self.result = pipe(**self._arguments)
        except Closed:
            pass
        except BaseException as error:  # the host raises it
            self.error = error
        finally:
            self._arguments = {}
            self.pending, self.ended = None, True
            self._parked.put(None)

    def park(self, call: ModuleCall) -> Any:
        """In the guest's thread: wait for the output of a call."""
        if self._closed:
            raise Closed
        self.pending = call
        self._parked.put(None)
        output = self._inbox.get()
        self.pending = None
        if isinstance(output, BaseException):
            raise output
        return output

    def stepped(self, scheduler: Any, taken: tuple[Any, ...], output: Any) -> Any:
        """In the guest's thread: the main scheduler made a step. Returns what the pipeline gets."""
        position = self.position + 1
        if self.restore is not None and self.restore.position == position:
            found, self.restore = self.restore, None
            vars(scheduler).update(copy_solver(found.solver))
            self.generator.set_state(found.generator)
            self.record = found
            return _with_sample(output, found.latents.clone())
        sample = _sample(output)
        solver = copy_solver({name: value for name, value in vars(scheduler).items() if name not in _CONSTANT})
        self.record = Record(position, sample.clone(), solver, self.generator.get_state(), taken)
        return output


_CONSTANT = ("_internal_dict", "_studio_run")


def _planned(pipe: weakref.ref[Any]) -> int:
    found = pipe()
    if found is None:
        return 0
    count = getattr(found, "_num_timesteps", None)
    if not isinstance(count, int):
        times = getattr(getattr(found, "scheduler", None), "timesteps", None)
        count = 0 if times is None else len(times)
    return count


def copy_solver(values: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a scheduler; lists are copied, since schedulers write into them."""
    return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}


def _sample(output: Any) -> Tensor:
    """The next sample in the output of `scheduler.step`."""
    first = output if isinstance(output, Tensor) else output[0]
    assert isinstance(first, Tensor)
    return first


def _with_sample(output: Any, sample: Tensor) -> Any:
    if isinstance(output, Tensor):
        return sample
    if isinstance(output, tuple):
        return (sample, *output[1:])
    output[next(iter(output))] = sample
    return output


def cache_by_class(make: Callable[[type], type]) -> Callable[[type], type]:
    """Call `make` once for each class."""
    made: dict[int, type] = {}

    @functools.wraps(make)
    def cached(kind: type) -> type:
        if id(kind) not in made:
            made[id(kind)] = make(kind)  # it is a subclass, so that `kind` stays
        return made[id(kind)]

    return cached


def modules_of(pipe: Any, prefix: str = "") -> dict[str, torch.nn.Module]:
    """The modules of a pipeline and of the pipelines in it, by the names of their proxies."""
    from diffusers import DiffusionPipeline

    found: dict[str, torch.nn.Module] = {}
    for name, value in vars(pipe).items():
        if isinstance(value, torch.nn.Module):
            found[prefix + name] = value
        elif isinstance(value, DiffusionPipeline):
            found |= modules_of(value, f"{prefix}{name}.")
    return found


def guest_copy(pipe: Any, run: GuestRun, prefix: str = "") -> Any:
    """A shallow copy of a pipeline, and of the pipelines in it, whose modules are proxies and schedulers copies."""
    from diffusers import DiffusionPipeline, SchedulerMixin

    made = copy.copy(pipe)
    for name, value in vars(pipe).items():
        if isinstance(value, torch.nn.Module):
            vars(made)[name] = Proxy(prefix + name, run)
        elif isinstance(value, SchedulerMixin):
            vars(made)[name] = _observed(value, run, main=name == "scheduler" or name.endswith("prior_scheduler"))
        elif isinstance(value, DiffusionPipeline):
            vars(made)[name] = guest_copy(value, run, f"{prefix}{name}.")
    made.__class__ = _guest_class(type(pipe))
    vars(made)["_studio_run"] = run
    return made


@cache_by_class
def _guest_class(kind: type) -> type:
    """The pipeline's class on the host's device: its modules may be elsewhere at the moment."""
    device = property(lambda self: vars(self)["_studio_run"].device)
    made = type(kind.__name__, (kind,), {"_execution_device": device, "device": device, "__module__": kind.__module__})
    made.__qualname__ = kind.__qualname__
    return made


def _observed(scheduler: Any, run: GuestRun, *, main: bool) -> Any:
    """A copy of a scheduler whose `step` is recorded if it is the main one."""
    made = copy.deepcopy(scheduler)
    if main and hasattr(made, "step"):
        made.__class__ = _observed_class(type(scheduler))
        made._studio_run = _Main(run, made)
    return made


class _Main:
    """The run to which a scheduler reports; copies that the pipeline makes of the scheduler report to none."""

    def __init__(self, run: GuestRun, scheduler: Any) -> None:
        self.run, self._scheduler = run, weakref.ref(scheduler)

    def is_of(self, scheduler: Any) -> bool:
        return self._scheduler() is scheduler

    def __deepcopy__(self, memo: Any) -> _Main:
        return self


@cache_by_class
def _observed_class(kind: type) -> type:
    real: Callable[..., Any] = kind.step  # type: ignore[attr-defined]  # `_observed` asks for it

    @functools.wraps(real)  # pipelines look at the signature, to know whether to pass a generator
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real(self, *args, **kwargs)
        main = vars(self)["_studio_run"]
        if not main.is_of(self):
            return output
        names = ("model_output", "timestep", "sample")
        taken = tuple(args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names))
        return main.run.stepped(self, taken, output)

    made = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})
    made.__qualname__ = kind.__qualname__
    return made


class Proxy:
    """Stands for a module in a guest's pipeline: calls park, everything else is the module's own."""

    def __init__(self, name: str, run: GuestRun) -> None:
        vars(self).update(_name=name, _run=run)

    @property  # type: ignore[misc]  # pipelines ask `isinstance`
    def __class__(self) -> type:
        return type(_module(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's call."""
        return _park(self, "__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(_module(self), name)
        if name in _PARKING and callable(found):  # pipelines look at the signatures
            method = "__call__" if name == "forward" else name
            return functools.wraps(found)(lambda *args, **kwargs: _park(self, method, args, kwargs))
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_module(self), name, value)

    @property
    def device(self) -> torch.device:
        """Where the host runs the module."""
        found: torch.device = vars(self)["_run"].device
        return found

    def to(self, *args: Any, **kwargs: Any) -> Proxy:
        """The host chooses device and dtype."""
        return self

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Name the next calls for a step cache."""
        run: GuestRun = vars(self)["_run"]
        before, run.context = run.context, (name, kwargs)
        try:
            yield
        finally:
            run.context = before


def _module(proxy: Proxy) -> Any:
    return vars(proxy)["_run"].components[vars(proxy)["_name"]]


def _park(proxy: Proxy, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    run: GuestRun = vars(proxy)["_run"]
    return run.park(ModuleCall(vars(proxy)["_name"], method, args, kwargs, run.context))
