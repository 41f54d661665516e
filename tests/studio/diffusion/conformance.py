"""What a stepped pipeline keeps: one check for each property. Each raises AssertionError, or what the pipeline raises.

Used by the tests and by ``python -m benchmarks.pipelines``, which writes docs/pipelines.md.
"""

from __future__ import annotations

import functools
import gc
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import studio
from studio.diffusion.stepping import GuestState, PipelineModel, finish, start, step
from studio.engine.checkpoints.encoding import decode_state, encode_state

from . import tiny


class Bench:
    """A tiny pipeline, its plain outputs, and its guests. Request number i has the seed i."""

    def __init__(self, name: str) -> None:
        self.pipe, self.arguments = tiny.build(name)
        self.model = PipelineModel(self.pipe, "cpu")
        self.pipe.set_progress_bar_config(disable=True)
        self.plain = functools.cache(self._plain)

    def _plain(self, i: int) -> list[np.ndarray]:
        """The arrays in the output of the pipeline's own call."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)  # some pipelines draw from torch's own generator as well
            return arrays(self.pipe(**self._given(i), generator=torch.Generator().manual_seed(i)))

    def _given(self, i: int) -> dict[str, Any]:
        return {"output_type": "np", **self.arguments(i)}

    def start(self, i: int) -> GuestState:
        return start(self.model, self._given(i), studio.Rng(i))

    def finish(self, state: GuestState) -> list[np.ndarray]:
        while not state.done:
            (state,) = step(self.model, [state])
        return arrays(finish(self.model, [state])[0])


def arrays(result: Any) -> list[np.ndarray]:
    """All pictures, arrays and tensors in an output."""
    if isinstance(result, Image.Image | np.ndarray):
        return [np.asarray(result)]
    if isinstance(result, Tensor):
        return [result.numpy()]
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, list | tuple) else ()
    return [each for value in values for each in arrays(value) if each.size]


def same(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    """Whether two outputs are equal to the byte, and hold finite numbers that are not all equal."""
    assert one, "the output holds no array"
    assert all(np.isfinite(each).all() for each in two), "the pipeline's own output is not finite"
    assert any(each.min() < each.max() for each in two), "the pipeline's own output is a constant"
    return len(one) == len(two) and all(a.dtype == b.dtype and np.array_equal(a, b)
                                        for a, b in zip(one, two, strict=True))  # fmt: skip


def plain_equals_guest(bench: Bench) -> None:
    """A guest's output is that of the pipeline's own call, and unlike requests give unlike outputs."""
    assert same(bench.finish(bench.start(1)), bench.plain(1)), "the guest's output differs from the pipeline's"
    other = bench.plain(2)
    assert len(other) != len(bench.plain(1)) or not same(other, bench.plain(1)), "all requests give the same output"


def interleaved(bench: Bench) -> None:
    """Guests that step by turns give what they give alone."""
    running = {i: bench.start(i) for i in range(2)}
    turn = 0
    while running:
        turn += 1
        if turn == 2:
            running[2] = bench.start(2)  # it begins when others are on their way, and they end before it
        for i, state in list(running.items()):
            if state.done:
                output = bench.finish(running.pop(i))
                assert same(output, bench.plain(i)), f"request {i} was changed by others that stepped by turns"
            else:
                (running[i],) = step(bench.model, [state])


def merged(bench: Bench) -> float:
    """Guests that step together differ by rounding only. The largest difference, in parts of the largest value."""
    states = [bench.start(i) for i in range(3)]
    while running := [state for state in states if not state.done]:
        made = dict(zip(map(id, running), step(bench.model, running), strict=True))
        states = [made.get(id(state), state) for state in states]
    most = 0.0
    for i, result in enumerate(finish(bench.model, states)):
        for one, two in zip(arrays(result), bench.plain(i), strict=True):
            scale = 255.0 if one.dtype == np.uint8 else max(1.0, float(np.abs(two).max()))
            most = max(most, float(np.abs(one.astype(np.float64) - two).max()) / scale)
    assert most <= 1e-5, f"requests that stepped together differ by {most:.1e}"
    return most


def cancelled(bench: Bench) -> None:
    """A request that is let go at any step leaves no thread and no tensor."""
    before = settings(bench)
    held = [_cancel_at_each_step(bench) for _ in range(2)]
    assert settings(bench) == before, "a cancelled request leaves attention processors or hooks in the modules"
    assert held[0] == held[1], f"{held[1] - held[0]} bytes of tensors stay after requests were cancelled"


def settings(bench: Bench) -> list[Any]:
    """What a request could leave in the modules that others use."""
    return [(id(getattr(each, "processor", None)), len(each._forward_hooks), len(each._forward_pre_hooks))
            for part in bench.model.components.values() for each in part.modules()]  # fmt: skip


def _cancel_at_each_step(bench: Bench) -> int:
    before, state, taken = set(threading.enumerate()), bench.start(0), 0
    while not state.done:
        del state
        state = bench.start(0)
        for _ in range(taken):
            (state,) = step(bench.model, [state])
        taken += 1
    guest = weakref.ref(state.guest)
    del state
    gc.collect()
    assert guest() is None, "a cancelled request stays in memory"
    assert set(threading.enumerate()) <= before, "a cancelled request leaves a thread"
    tensors = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
               for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter)}  # fmt: skip
    return sum(tensors.values())


def resumed(bench: Bench, *, at_its_step: bool) -> None:
    """A state saved at any step gives the same bytes: entered at its step, or computed again from the first."""
    bench.model.resumes = frozenset({type(bench.pipe).__name__} if at_its_step else {})
    state = bench.start(1)
    while not state.done:
        (state,) = step(bench.model, [state])
        saved, tensors = encode_state(state)
        again = decode_state(saved, tensors, bench.start(1), "cpu")
        assert again.position == state.position
        assert same(bench.finish(again), bench.plain(1)), f"resumed at step {state.position}, the output differs"


def retried(bench: Bench) -> None:
    """Wherever a forward pass runs out of memory, the retried request gives the same bytes."""
    with _forwards() as forwards:
        starts: list[int] = []
        module_of = bench.model.batcher.module_of
        bench.model.batcher.module_of = lambda name: (starts.append(forwards.count), module_of(name))[1]
        bench.finish(bench.start(0))
        bench.model.batcher.module_of = module_of
        ends = [*starts[1:], forwards.count]
    assert starts, "no module was called"
    for first, last in zip(starts, ends, strict=True):
        with _forwards(fail_at=(first + last) // 2):
            output = _until_done(bench)
        assert same(output, bench.plain(0)), f"out of memory at forward {first}, the retried output differs"


def _until_done(bench: Bench) -> list[np.ndarray]:
    """Retry what fails, as the host does."""
    state = _retry(lambda: bench.start(0))
    while not state.done:
        (state,) = _retry(lambda: step(bench.model, [state]))  # noqa: B023  # it is called at once
    return _retry(lambda: arrays(finish(bench.model, [state])[0]))


def _retry(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except torch.OutOfMemoryError:
        return act()


class _Forwards:
    def __init__(self, fail_at: int | None) -> None:
        self.count, self._fail_at = 0, fail_at

    def __call__(self, *given: Any) -> None:
        self.count += 1
        if self.count - 1 == self._fail_at:
            raise torch.OutOfMemoryError("no memory left")


@contextmanager
def _forwards(fail_at: int | None = None) -> Iterator[_Forwards]:
    """Count the forward passes of all modules, and fail at one of them."""
    made = _Forwards(fail_at)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(made)
    try:
        yield made
    finally:
        handle.remove()


@dataclass
class Row:
    """A pipeline class and the outcome of its checks.

    Attributes:
        failed: the reason of each check that failed.
        difference: the largest of outputs of requests that stepped together.
        alone: why calls of a component run alone, where a comparison has shown that they must.
        always_alone: whether no call of the denoiser was ever merged.
        resumes: whether a saved state is entered at its step; else its steps are computed again.
    """

    name: str
    steps: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0
    alone: dict[str, str] = field(default_factory=dict)
    always_alone: bool = False
    resumes: bool = False
    seconds: float = 0.0


def check(name: str, *, trace: bool = False) -> Row:
    """All checks of one class. Prints the traceback of each failure, if asked to."""
    row, begun = Row(name), time.perf_counter()

    def attempt(what: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # pipelines raise anything; it is the result
            if trace:
                traceback.print_exc()
            row.failed[what] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return None

    bench: Bench | None = attempt("build", lambda: Bench(name))
    if bench is None or attempt("plain", lambda: bench.plain(1)) is None:
        return row
    attempt("guest", lambda: plain_equals_guest(bench))
    if "guest" not in row.failed:
        row.steps = bench.start(1).steps
        attempt("interleaved", lambda: interleaved(bench))
        row.difference = attempt("batched", lambda: merged(bench)) or 0.0
        row.always_alone = not any(reason == "" for reason in bench.model.batcher.verdicts.values())
        row.alone = {" ".join(kind[:2]): reason for kind, reason in bench.model.batcher.verdicts.items() if reason}
        attempt("cancelled", lambda: cancelled(bench))
        attempt("resumed at its step", lambda: resumed(bench, at_its_step=True))
        row.resumes = row.failed.pop("resumed at its step", None) is None
        if not row.resumes:
            attempt("restarted", lambda: resumed(bench, at_its_step=False))
        attempt("retried", lambda: retried(bench))
    row.seconds = time.perf_counter() - begun
    return row
