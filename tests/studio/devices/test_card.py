"""What a card must do: the same tests on the fake GPU, always, and on `cuda:0`, by `pytest -m cuda` where there is one.

`benchmarks/gpu.py` runs the second.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from studio import devices
from studio.attention import Spans, attend_spans, spans
from studio.devices import Device
from studio.devices.graphs import AFTER, Graphs
from studio.engine.memory.components import Component, Components
from studio.engine.memory.ledger import Ledger, tensor_bytes
from studio.plugins import Plugins
from studio.testing import check
from studio.testing.fake_gpu import FakeGpu

NOT_HERE = devices.why_unavailable("cuda")
ON_A_CARD = [pytest.mark.cuda, pytest.mark.skipif(NOT_HERE is not None, reason=str(NOT_HERE))]
SMALL = {
    "text": {"prompt": "an apple", "max_tokens": 8}, "dcgan": {}, "ddpm": {"steps": 3},
    "image": {"prompt": "a red apple", "steps": 3}, "video": {"prompt": "a horse bouncing", "frames": 8, "steps": 3},
}  # fmt: skip


@pytest.fixture(params=["gpu:0", pytest.param("cuda:0", marks=ON_A_CARD)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "gpu:0":
        with FakeGpu.installed() as gpu, torch.no_grad():
            gpu.records_graphs = True
            yield gpu
        return
    card = devices.device(request.param)
    card.enter()
    with torch.no_grad():
        yield card


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_arrive_as_the_cpu_casts_them(device: Device) -> None:
    x = numbers(300, 70).t()
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        sent = device.send(x, dtype)
        device.synchronize()
        assert torch.equal(sent.cpu(), x.to(dtype))
    small = [torch.tensor([1, 2, 3]), numbers(2, 5), torch.tensor([True])]
    for sent, given in zip(device.upload_all(small), small, strict=True):
        assert torch.equal(sent.cpu(), given)


def test_weights_that_leave_on_their_way_back_are_whole(device: Device) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(1024, 1024).to(device.name).requires_grad_(False)
    before = [each.cpu() for each in layer.parameters()]
    part = Component(layer, tensor_bytes(layer, device.name), frozenset())
    components = Components(device.name, Ledger(), str, Ledger())
    components.use([part], "test")
    for _ in range(3):
        components.offload([part])
        assert all(each.device.type == "cpu" for each in layer.parameters())
        components.restore([part])
    components.wait([part])
    device.synchronize()
    assert all(torch.equal(each.cpu(), old) for each, old in zip(layer.parameters(), before, strict=True))


def test_a_recording_is_repeated_with_other_inputs(device: Device) -> None:
    graphs, layer = Graphs(device), torch.nn.Linear(64, 64).to(device.name).requires_grad_(False)

    def work(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(layer(x)) + x

    for turn in range(AFTER + 3):
        x = numbers(8, 64, seed=turn).to(device.name)
        due, made = work(x).cpu(), graphs.run("one", work, [x]).cpu()
        assert torch.allclose(made, due, atol=1e-6)
    assert (len(graphs), graphs.failed) == (1, {})


def test_float32_is_exact(device: Device) -> None:
    a, b = numbers(256, 256), numbers(256, 256, seed=1)
    off = (a.to(device.name) @ b.to(device.name)).cpu().double() - a.double() @ b.double()
    assert off.abs().max() < 1e-3, "TF32 would be off by some 1e-2"
    x, kernel = numbers(2, 32, 16, 16), numbers(32, 32, 3, 3, seed=1)
    made = torch.nn.functional.conv2d(x.to(device.name), kernel.to(device.name)).cpu().double()
    assert (made - torch.nn.functional.conv2d(x.double(), kernel.double())).abs().max() < 1e-3


@pytest.mark.parametrize("window", [None, 5])
def test_spans_of_unlike_lengths_see_what_they_should(device: Device, window: int | None) -> None:
    dtype = torch.float32 if device.kind == "gpu" else getattr(torch, device.fast_dtype())
    counts, begins, used = [1, 1, 7], [300, 8, 40], [200, 1, 30]
    ends = torch.tensor([0, *counts]).cumsum(0).int()
    q, k, v = (numbers(n, heads, 64, seed=seed).to(device.name, dtype)
               for seed, (n, heads) in enumerate(((9, 4), (512, 2), (512, 2))))  # fmt: skip
    there = [torch.tensor(each, dtype=torch.int32).to(device.name) for each in ([*begins, 0], used)]
    asked = Spans(ends.to(device.name), *there, max(counts), 256)
    made, due = attend_spans(q, k, v, asked, window), spans._gathered(q, k, v, asked, window)
    assert (made.float() - due.float()).abs().max().item() < (1e-5 if dtype == torch.float32 else 3e-2)


def test_what_a_call_takes_is_measured(device: Device) -> None:
    probe = device.memory_probe()
    probe.begin(first=True)
    x = torch.empty(64 << 20, dtype=torch.uint8, device=device.name)
    del x
    taken = probe.peak()
    assert taken is None or 64 << 20 <= taken < 128 << 20


@pytest.mark.parametrize("name", [pytest.param(name, marks=ON_A_CARD) for name in SMALL])
def test_a_generator_conforms(name: str) -> None:
    report = check(Plugins.discover((), user_folder=None).generators[name], SMALL[name], device="cuda:0")
    assert not report.failures
