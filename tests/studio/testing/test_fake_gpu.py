"""The fake GPU computes what the CPU does, and catches what only a GPU would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from studio import devices
from studio.errors import UsageError
from studio.testing.fake_gpu import FakeGpu


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu, torch.no_grad():
        yield gpu


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def test_outputs_equal_the_cpus_to_the_bit(gpu: FakeGpu) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = net()(x)
    made = net().to("gpu:0")(x.to("gpu:0"))
    assert made.device == torch.device("gpu:0")
    assert torch.equal(made.cpu(), expected)


def test_devices_do_not_mix(gpu: FakeGpu) -> None:
    with pytest.raises(RuntimeError, match=r"same device, but found gpu:0 and cpu, of shape \(3,\)"):
        torch.ones(3, device="gpu:0") + torch.ones(3)
    assert (torch.ones(3, device="gpu:0") + torch.tensor(2.0)).tolist() == [3.0] * 3, "a number of no axes may come"


def test_waits_are_counted_with_their_line(gpu: FakeGpu) -> None:
    x = torch.ones(4, device="gpu:0")
    with gpu.counting() as counts:
        float(x.sum())
        x[torch.tensor([0, 1])]
        x.cpu()
        torch.tensor([1.0, 2.0]).to("gpu:0")
    assert counts.waited == 4
    assert {place.partition(":")[0] for place in counts.waits} == {"test_fake_gpu.py"}
    with gpu.counting() as counts:
        devices.device("gpu:0").upload(torch.ones(4)) * x + x[:2].sum()
    assert counts.waited == 0


def test_launches_leave_views_and_allocation_out(gpu: FakeGpu) -> None:
    x = torch.ones(4, 4, device="gpu:0")
    with gpu.counting() as counts:
        x.view(2, 8).transpose(0, 1)[:3]
        torch.empty_like(x)
        x @ x + x
    assert dict(counts.launches) == {"mm": 1, "add": 1}


def test_what_is_copied_beside_is_nan_until_it_is_waited_for(gpu: FakeGpu) -> None:
    source, made = torch.arange(3.0), []

    def copy() -> list[torch.Tensor]:
        made.append(source.to("gpu:0", non_blocking=True, copy=True))
        return made

    coming = gpu.copy_beside(copy)
    assert made[0].isnan().all().item()
    assert coming is not None
    coming.wait()
    assert made[0].tolist() == [0.0, 1.0, 2.0]


def test_queued_work_takes_time_when_it_is_waited_for(gpu: FakeGpu) -> None:
    gpu.seconds_per_launch = 0.5
    x = torch.ones(2, device="gpu:0") + 1
    assert gpu.clock == 0
    x.tolist()
    assert gpu.clock >= 0.5


def test_it_is_gone_afterwards() -> None:
    before = torch.inference_mode
    with FakeGpu.installed():
        assert devices.choose("gpu") == "gpu:0"
    assert torch.inference_mode is before
    with pytest.raises(UsageError, match="the device is `gpu`"):
        devices.choose("gpu")
