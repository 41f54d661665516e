"""Recordings of launches: repeated with other inputs, forgotten when told, left alone where they fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from studio import devices
from studio.devices.graphs import AFTER, Graphs
from studio.engine.ledger import Ledger
from studio.engine.parts import Part, Parts
from studio.testing.fake_gpu import FakeGpu


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu:
        gpu.records = True
        yield gpu


def there(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).to("gpu:0")


def test_a_call_is_recorded_after_some_and_then_repeated_with_other_inputs(gpu: FakeGpu) -> None:
    graphs, calls, weight = Graphs(gpu), [], there(2.0, 3.0)
    kept = torch.zeros(2).to("gpu:0")

    def work(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        kept.add_(x)
        return (x * weight).sum()[None] + x[1:]

    for i in range(AFTER + 4):
        with gpu.counting() as counts:
            made = graphs.run("one", work, [there(1.0, float(i))])
        assert made.tolist() == [2.0 + 4 * i]
    assert len(calls) == AFTER + 1
    assert counts.launches["graph"] == 1
    assert kept.tolist()[0] == AFTER + 5, "this device computes while it records; CUDA does not"
    graphs.run("other", work, [there(1.0, 1.0)])
    assert len(graphs) == 1
    graphs.drop()
    assert len(graphs) == 0
    assert graphs.run("one", work, [there(1.0, 1.0)]).tolist() == [6.0]
    assert len(calls) == AFTER + 3


def test_recordings_go_when_weights_leave_the_device(gpu: FakeGpu, tmp_path: Path) -> None:
    graphs, parts = Graphs(gpu, after=0), Parts("gpu:0", Ledger(), str, Ledger())
    layer = torch.nn.Linear(2, 1).to("gpu:0").requires_grad_(False)
    part = Part(layer, 12, frozenset())
    due = layer(there(1.0, 2.0)).tolist()
    assert graphs.run("it", lambda x: layer(x), [there(1.0, 2.0)]).tolist() == due
    assert len(graphs) == 1
    parts.put_off([part])
    assert len(graphs) == 0
    parts.bring_back([part])
    parts.wait([part])
    assert graphs.run("it", lambda x: layer(x), [there(1.0, 2.0)]).tolist() == due


def test_what_cannot_be_recorded_goes_on_as_before_and_says_why(gpu: FakeGpu) -> None:
    graphs = Graphs(gpu, after=0)

    def waits(x: torch.Tensor) -> float:
        return float(x.sum())

    assert [graphs.run("it", waits, [there(1.0, 2.0)]) for _ in range(3)] == [3.0] * 3
    assert "stream is capturing" in graphs.failed["it"]


def test_the_one_used_longest_ago_makes_place(gpu: FakeGpu) -> None:
    graphs = Graphs(gpu, after=0, most=2)
    for key in (1, 2, 1, 3):
        graphs.run(key, lambda x: x + 1, [there(1.0)])
    with gpu.counting() as counts:
        assert graphs.run(1, lambda x: x, [there(5.0)]).tolist() == [6.0]
    assert counts.launches["graph"] == 1
    assert len(graphs) == 2


def test_a_device_without_recordings_works_each_time() -> None:
    graphs = Graphs(devices.device("cpu"), after=0)
    assert [graphs.run(0, lambda x: x + 1, [torch.ones(1) * i]).item() for i in range(3)] == [1, 2, 3]
    assert len(graphs) == 0
