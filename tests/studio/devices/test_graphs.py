"""Recordings of launches: repeated with other inputs, forgotten when told, left alone where they fail."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from studio import devices
from studio.attention import DispatchSettings, attend, record_backends
from studio.attention.current import use_dispatch
from studio.devices.graphs import AFTER, Graphs, keep_alive
from studio.engine.memory.components import Component, Components
from studio.engine.memory.ledger import Ledger
from studio.testing.fake_gpu import FakeGpu


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu:
        gpu.records_graphs = True
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
    graphs, components = Graphs(gpu, after=0), Components("gpu:0", Ledger(), str, Ledger())
    layer = torch.nn.Linear(2, 1).to("gpu:0").requires_grad_(False)
    part = Component(layer, 12, frozenset())
    due = layer(there(1.0, 2.0)).tolist()
    assert graphs.run("it", lambda x: layer(x), [there(1.0, 2.0)]).tolist() == due
    assert len(graphs) == 1
    components.offload([part])
    assert len(graphs) == 0
    components.restore([part])
    components.wait([part])
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


def test_other_shapes_strides_and_dtypes_have_recordings_of_their_own(gpu: FakeGpu) -> None:
    graphs = Graphs(gpu, after=0)
    wide = there(1.0, 2.0, 3.0, 4.0)
    given = [wide, wide[:2], wide[::2], wide.to(torch.float64)]
    for _ in range(2):
        for x in given:
            assert graphs.run("it", lambda x: x * 2, [x]).tolist() == [2 * each for each in x.tolist()]
    assert len(graphs) == 4


def test_who_served_attention_is_told_of_a_repeated_call_too(gpu: FakeGpu) -> None:
    graphs, q = Graphs(gpu, after=0), torch.randn(1, 4, 2, 8).to("gpu:0")
    told = []
    for _ in range(2):
        with record_backends() as used:
            graphs.run("it", lambda x: attend(x, x, x), [q])
        told.append(used)
    assert told == [{"sdpa-flash"}] * 2
    with use_dispatch(DispatchSettings()):  # another table and other backends may choose otherwise
        graphs.run("it", lambda x: attend(x, x, x), [q])
    assert len(graphs) == 2


def test_what_work_takes_from_a_cache_is_kept_as_long_as_it_is_read(gpu: FakeGpu) -> None:
    graphs, cache = Graphs(gpu, after=0), {"mask": there(1.0, 0.0)}
    held = weakref.ref(cache["mask"])
    run = partial(graphs.run, "it", lambda x: x * keep_alive(cache["mask"]))
    assert run([there(2.0, 3.0)]).tolist() == [2.0, 0.0]
    cache.clear()
    assert held() is not None
    assert run([there(4.0, 3.0)]).tolist() == [4.0, 0.0]
    graphs.drop()
    assert held() is None


def replaced(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach() * 2, requires_grad=False)


def elsewhere(net: nn.Sequential) -> None:
    net[0].weight.data = net[0].weight.detach() * 2


def wrapped(net: nn.Sequential) -> None:
    net[0] = nn.Sequential(net[0], nn.ReLU())


def added(net: nn.Sequential) -> None:
    net.append(nn.ReLU())


def away(net: nn.Sequential) -> None:
    net[0]._parameters["weight"] = nn.Parameter(torch.empty(1, 2, device="meta"), requires_grad=False)


@pytest.mark.parametrize("change", [replaced, elsewhere, wrapped, added, away])
def test_a_module_that_changes_drops_its_recordings(gpu: FakeGpu, change: Callable[[nn.Sequential], None]) -> None:
    net = nn.Sequential(nn.Linear(2, 1, bias=False)).to("gpu:0").requires_grad_(False)
    weight = net[0].weight
    graphs = Graphs("gpu:0", net, after=1)

    def work(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.T if net[0]._parameters.get("weight", weight).is_meta else net(x)

    for _ in range(2):
        assert graphs.run("it", work, [there(1.0, 2.0)]).tolist() == net(there(1.0, 2.0)).tolist()
    assert len(graphs) == 1
    change(net)
    for _ in range(3):
        assert graphs.run("it", work, [there(3.0, -4.0)]).tolist() == work(there(3.0, -4.0)).tolist()
    assert len(graphs) == (change is not away), "weights that come and go are read where they are"


def test_nothing_is_recorded_where_gradients_are_computed(gpu: FakeGpu) -> None:
    net = nn.Linear(2, 1).to("gpu:0")
    graphs = Graphs(gpu, net, after=0)
    graphs.run("it", lambda x: net(x), [there(1.0, 2.0)])
    assert len(graphs) == 0
    with torch.no_grad():
        graphs.run("it", lambda x: net(x), [there(1.0, 2.0)])
    assert len(graphs) == 1


def test_a_copy_from_the_host_cannot_be_recorded(gpu: FakeGpu) -> None:
    graphs = Graphs(gpu, after=0)
    for factor in (2.0, 3.0):
        made = graphs.run("it", lambda x: x * gpu.upload(torch.tensor([factor])), [there(1.0)])  # noqa: B023
        assert made.tolist() == [factor]
    assert "copies from the host" in graphs.failed["it"]


def test_running_out_of_memory_while_recording_drops_all_and_is_tried_later(gpu: FakeGpu) -> None:
    one, other = Graphs(gpu, after=1), Graphs(gpu, after=0)
    other.run("it", lambda x: x + 1, [there(1.0)])
    gpu.record_failure = torch.OutOfMemoryError("out of memory")
    for i in range(3):
        assert one.run("it", lambda x: x + 1, [there(float(i))]).tolist() == [i + 1]
    assert len(one) == len(other) == 0
    assert not one.failed
    gpu.record_failure = None
    made = []
    for i in range(4):
        one.run("it", lambda x: x + 1, [there(float(i))])
        made.append(len(one))
    assert made == [0, 1, 1, 1], "after twice as many calls as before, one of which was made"


def test_an_error_that_ends_the_context_is_raised(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "is_lost", lambda error: "assert" in str(error))
    gpu.record_failure = RuntimeError("device-side assert triggered")
    graphs = Graphs(gpu, after=0)
    with pytest.raises(RuntimeError, match="device-side assert"):
        graphs.run("it", lambda x: x, [there(1.0)])


DEEDS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 3), st.booleans()), st.sampled_from(["drop", "short", "move", "refuse", "allow"])
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(deeds=DEEDS, after=st.integers(0, 2), most=st.integers(1, 3))
def test_whatever_happens_between_calls_they_answer_as_without_recordings(
    deeds: list[Any], after: int, most: int
) -> None:
    with FakeGpu.installed() as gpu:
        gpu.records_graphs = True
        net = nn.Linear(2, 2).to("gpu:0").requires_grad_(False)
        graphs = Graphs(gpu, net, after=after, most=most)
        for number, deed in enumerate(deeds):
            if deed in ("drop", "short"):
                graphs.drop(short=deed == "short")
            elif deed == "move":
                net.weight = nn.Parameter(net.weight.detach() + 1, requires_grad=False)
            elif deed in ("refuse", "allow"):
                gpu.record_failure = torch.OutOfMemoryError("out of memory") if deed == "refuse" else None
            else:
                width, twice = deed
                x = torch.arange(2.0 * width).view(width, 2).add(number).to("gpu:0")
                made = graphs.run(twice, lambda x: net(x) * 2 if twice else net(x), [x])  # noqa: B023
                assert torch.equal(made.cpu(), (net(x) * 2 if twice else net(x)).cpu())
                assert len(graphs) <= most
