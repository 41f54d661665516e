"""The fake GPU computes what the CPU does, and catches what only a GPU would."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from studio import devices
from studio.devices.graphs import Graphs
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

    coming = gpu.copy_async(copy)
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


def test_recordings_keep_what_was_made_in_them(gpu: FakeGpu) -> None:
    gpu.records_graphs = True
    graphs, weight = Graphs(gpu, after=0), torch.ones(64, 64, device="gpu:0")

    def work(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight).relu().sum(1)  # 64 * 64 twice, and 64

    assert gpu.memory_probe().recorded() == 0
    graphs.run("it", work, [torch.ones(64, 64, device="gpu:0")])
    assert (gpu.recordings, gpu.memory_probe().recorded()) == (1, 4 * (2 * 64 * 64 + 64))
    gpu.drop_recordings()
    assert (gpu.recordings, gpu.memory_probe().recorded()) == (0, 0)


def test_it_is_gone_afterwards() -> None:
    before = torch.inference_mode
    with FakeGpu.installed():
        assert devices.choose("gpu") == "gpu:0"
    assert torch.inference_mode is before
    with pytest.raises(UsageError, match="the device is `gpu`"):
        devices.choose("gpu")


@pytest.mark.parametrize(("causal", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.5)])
def test_gradients_equal_the_cpus_to_the_bit(gpu: FakeGpu, causal: bool, dropout: float) -> None:
    """Of a product, an activation and attention, whose kernels a GPU has of its own."""

    def learnt(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = nn.Linear(8, 3 * 8).to(device)
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        with torch.enable_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=False):
            q, k, v = nn.functional.silu(layer(x)).unflatten(-1, (6, 4)).transpose(1, 2).chunk(3, 1)  # (2, 2, 5, 4)
            torch.manual_seed(2)
            made = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
            made.square().sum().backward()
        found = [x.grad, layer.weight.grad, layer.bias.grad]
        assert all(each is not None and each.device.type == torch.device(device).type for each in found)
        return [each.cpu() for each in found if each is not None]

    assert all(torch.equal(ours, cpus) for ours, cpus in zip(learnt("gpu:0"), learnt("cpu"), strict=True))


def test_attention_learns_no_mask_that_is_not_learnt(gpu: FakeGpu) -> None:
    q = torch.ones(1, 1, 2, 4, device="gpu:0").requires_grad_()
    mask = torch.eye(2, device="gpu:0")
    for bias in (mask, mask.clone().requires_grad_()):
        with torch.enable_grad():
            nn.functional.scaled_dot_product_attention(q, q.detach(), q.detach() * 2, bias).sum().backward()
        assert (bias.grad is not None) == bias.requires_grad
    assert mask.grad is None


def test_shared_parameters_stay_shared_when_they_move(gpu: FakeGpu) -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Sequential(nn.Linear(3, 4, bias=False)))
    model[1][0].weight = model[0].weight  # type: ignore[index, union-attr]
    for device in ("gpu:0", "cpu"):
        model.to(device)
        assert [name for name, _ in model.named_parameters()] == ["0.weight"]
        assert model[0].weight.device == torch.device(device)


def test_gradients_of_group_norm_equal_the_cpus_whatever_the_layout(gpu: FakeGpu) -> None:
    """For a GPU torch makes contiguous what the CPU leaves channels last, which sums in another order."""

    def learnt(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.GroupNorm(4, 48), nn.Conv2d(48, 48, 3, padding=1), nn.GroupNorm(4, 48, affine=False))
        net.to(device, memory_format=torch.channels_last)
        x = torch.randn(2, 48, 5, 5, generator=torch.Generator().manual_seed(1)).to(device)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad():
            (net(x) * torch.linspace(-1, 1, 5, device=device)).square().sum().backward()
        return [each.grad.cpu() for each in (x, *net.parameters()) if each.grad is not None]

    ours, cpus = learnt("gpu:0"), learnt("cpu")
    assert len(ours) == 5
    assert all(torch.equal(one, other) for one, other in zip(ours, cpus, strict=True))


def test_copies_of_pageable_memory_are_counted_both_ways(gpu: FakeGpu) -> None:
    x, host = torch.ones(2, device="gpu:0"), torch.ones(2)
    with gpu.counting() as counts:
        host.to("gpu:0")
        host.to("gpu:0", non_blocking=True)
        x.cpu()
        x.tolist()
        x[torch.tensor([0])]
    assert counts.pageable.total() == 5
    with gpu.counting() as counts:
        there = devices.upload(host, x.device)
        back = devices.download(x + there)
        gpu.to_host([x, there])
        x.sum().item()
    assert counts.pageable.total() == 0
    assert counts.waited == 3, "both reads, and the number"
    assert back.tolist() == [2.0, 2.0]
    assert devices.download(host) is host


def test_modules_are_copied_with_their_parameters(gpu: FakeGpu) -> None:
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)).to("gpu:0")
    model[1].bias.requires_grad_(False)
    copied = copy.deepcopy(model)
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in model.named_parameters()]
    for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        assert isinstance(ours, nn.Parameter)
        assert ours.data_ptr() != theirs.data_ptr()
        assert (ours.shape, ours.device, ours.requires_grad) == (theirs.shape, theirs.device, theirs.requires_grad)
        assert torch.equal(ours.cpu(), theirs.cpu())
