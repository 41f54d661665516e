"""Guests: interleaved they equal the pipeline's own call to the byte; merged, but for rounding; they resume."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.diffusion.stepping import GuestState, PipelineModel, finish, preview, start, step
from studio.engine.checkpoints.encoding import decode_state, encode_state

from . import tiny

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with tiny.one_thread():
        yield


class Bench:
    """A tiny pipeline, its plain outputs, and its guests."""

    def __init__(self, name: str) -> None:
        self.pipe, self.arguments = tiny.build(name)
        self.model = PipelineModel(self.pipe, "cpu")

    def plain(self, i: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(i)
        return tiny.pixels(self.pipe(**self.arguments(i), generator=generator, output_type="np"))

    def start(self, i: int) -> GuestState:
        return start(self.model, {**self.arguments(i), "output_type": "np"}, studio.Rng(i))

    def finish(self, state: GuestState) -> np.ndarray:
        while not state.done:
            (state,) = step(self.model, [state])
        return tiny.pixels(finish(self.model, [state])[0])


@pytest.fixture(params=["StableDiffusionPipeline", "FluxPipeline", "WanPipeline"])
def bench(request: Any) -> Bench:
    return Bench(request.param)


def test_interleaved_guests_equal_plain_calls(bench: Bench) -> None:
    states = [bench.start(i) for i in range(3)]
    while any(not state.done for state in states):
        states = [state if state.done else step(bench.model, [state])[0] for state in states]
    for i, state in enumerate(states):
        assert np.array_equal(bench.finish(state), bench.plain(i))


def test_merged_guests_differ_by_rounding_only(bench: Bench) -> None:
    calls: list[int] = []
    denoiser = bench.model.components["unet" if "unet" in bench.model.components else "transformer"]
    denoiser.register_forward_hook(lambda *given: calls.append(1))
    states = [bench.start(i) for i in range(3)]
    singles = sum(state.steps for state in states)
    while running := [state for state in states if not state.done]:
        made = dict(zip(map(id, running), step(bench.model, running), strict=True))
        states = [made.get(id(state), state) for state in states]
    merged = len(calls)
    for i, result in enumerate(finish(bench.model, states)):
        assert np.abs(tiny.pixels(result) - bench.plain(i)).max() <= 1e-5
    assert set(bench.model.batcher.verdicts.values()) == {""}
    passes = 2 if type(bench.pipe).__name__ == "WanPipeline" else 1  # guidance by two calls
    assert merged < passes * singles


def test_a_saved_state_resumes_to_the_same_bytes_at_every_step(bench: Bench) -> None:
    plain, state = bench.plain(1), bench.start(1)
    while not state.done:
        (state,) = step(bench.model, [state])
        saved, tensors = encode_state(state)
        again = decode_state(saved, tensors, bench.start(1), "cpu")
        assert again.position == state.position
        assert np.array_equal(bench.finish(again), plain)


def test_a_pipeline_that_carries_more_restarts_to_the_same_bytes(bench: Bench) -> None:
    bench.model.resumes = frozenset()
    (state,) = step(bench.model, step(bench.model, [bench.start(1)]))
    saved, tensors = encode_state(state)
    assert np.array_equal(bench.finish(decode_state(saved, tensors, bench.start(1), "cpu")), bench.plain(1))


def test_a_repeated_step_gives_the_same_state(bench: Bench) -> None:
    first = bench.start(1)
    (once,), (twice,) = step(bench.model, [first]), step(bench.model, [first])
    assert once.latents is not None
    assert twice.latents is not None
    assert torch.equal(once.latents, twice.latents)
    assert once.position == twice.position == 1
    assert np.array_equal(bench.finish(twice), bench.plain(1))


def test_a_step_that_failed_can_be_retried(bench: Bench) -> None:
    denoiser = bench.model.components["unet" if "unet" in bench.model.components else "transformer"]
    failures = iter([0, 1, 0, 1, 1])

    def fail(*given: Any) -> None:
        if next(failures, 0):
            raise torch.OutOfMemoryError("no memory left")

    handle = denoiser.register_forward_pre_hook(fail)
    states = [bench.start(1), bench.start(2)]
    for _ in range(20):
        running = [state for state in states if not state.done]
        if not running:
            break
        try:
            made = dict(zip(map(id, running), step(bench.model, running), strict=True))
        except torch.OutOfMemoryError:
            continue
        states = [made.get(id(state), state) for state in states]
    handle.remove()
    for i, state in zip((1, 2), states, strict=True):
        assert np.abs(bench.finish(state) - bench.plain(i)).max() <= 1e-5


def test_a_guest_that_is_let_go_ends_its_thread(bench: Bench) -> None:
    before = threading.active_count()
    states = [bench.start(i) for i in range(3)]
    states = step(bench.model, states)
    assert threading.active_count() == before + 3
    del states
    gc.collect()
    assert threading.active_count() == before


def test_a_preview_changes_nothing(bench: Bench) -> None:
    state = bench.start(1)
    assert preview(bench.model, state) is None
    plain = bench.plain(1)
    shown = []
    while not state.done:
        (state,) = step(bench.model, [state])
        shown.append(tiny.pixels(preview(bench.model, state)))
    assert all(each.shape == plain.shape for each in shown)
    made = bench.finish(state)
    assert np.array_equal(made, plain)
    errors = [float(np.abs(each - made).mean()) for each in shown]
    assert errors[-1] == min(errors)
