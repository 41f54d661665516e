"""Recorded launches in an engine: they go before batches are split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import studio
from studio.devices.graphs import Graphs
from studio.engine.events import Finished, Notice
from studio.testing.fake_gpu import FakeGpu
from tests.studio.engine.bench import Bench, ask


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu, torch.no_grad():
        gpu.records_graphs = True
        yield gpu


@dataclass(frozen=True, kw_only=True, eq=False)
class Counting(studio.State):
    x: Any


class Counts(studio.Generator):
    """Count on the device, by recorded launches; memory runs out when `where` of it has them."""

    name = "counts"
    output = studio.Text
    max_batch = 4

    class Inputs(studio.Inputs):
        steps: int = studio.field(6, ge=1, le=99, help="how far")

    def __init__(self, gpu: FakeGpu, where: str) -> None:
        self.gpu, self.where, self.widths = gpu, where, list[int]()

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Graphs:
        return Graphs(device, after=1)

    def start(self, model: Graphs, inputs: Any, rng: studio.Rng) -> Counting:
        return Counting(steps=inputs.steps, x=torch.zeros(1, device="gpu:0"))

    def step(self, model: Graphs, states: Any) -> list[Counting]:
        self.widths.append(len(states))
        made = model.run("add", lambda x: x + 1, [torch.stack([state.x for state in states])])
        self._fail("step")
        return [replace(state, position=state.position + 1, x=x.clone()) for state, x in zip(states, made, strict=True)]

    def finish(self, model: Graphs, state: Counting) -> studio.Text:
        return self.finish_many(model, [state])[0]

    def finish_many(self, model: Graphs, states: Any) -> list[studio.Text]:
        self._fail("finish")
        return [studio.Text(str(state.x.tolist())) for state in states]

    def preview(self, model: Graphs, state: Counting) -> studio.Text:
        return studio.Text(str(state.x.tolist()))

    def batch_key(self, state: Counting) -> str:
        return "counts"

    def _fail(self, where: str) -> None:
        if where == self.where and self.gpu.recordings:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("where", ["step", "finish", ""])
def test_they_are_dropped_before_a_batch_is_split(gpu: FakeGpu, where: str) -> None:
    bench, made = Bench(device="gpu:0"), Counts(gpu, where)
    for seed in range(4):
        bench.accept(ask(made, seed=seed, preview_every=2))
    bench.drain()
    for each in bench.events.values():
        assert isinstance(each[-1], Finished)
        assert each[-1].media.text == "[6.0]"
        told = [event.text for event in each if isinstance(event, Notice)]
        what = {"step": "at batch size 4", "finish": "in finish at batch size 4"}.get(where)
        assert told == ([f"out of memory {what}: retrying without recorded CUDA graphs"] if what else [])
    assert set(made.widths) == {4}
