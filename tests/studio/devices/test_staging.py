"""Weights go to a device that pins through two blocks of memory: same bytes, no wait, no block written too early."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio import devices
from studio.devices.staging import Staging
from studio.errors import UsageError
from studio.testing.fake_gpu import FakeGpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu, torch.no_grad():
        yield gpu


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
                min_size=1, max_size=9))  # fmt: skip
def test_what_is_sent_arrives_as_the_cpu_casts_it(wanted: list[tuple[list[int], torch.dtype, torch.dtype]]) -> None:
    with FakeGpu.installed() as gpu, torch.no_grad():
        staging = Staging(gpu, 512)  # so that tensors share a block, and large ones are cut
        rng = torch.Generator().manual_seed(1)
        given_ = [torch.randn(shape, generator=rng).mul(40).abs().to(dtype) for shape, dtype, _ in wanted]
        with gpu.counting() as counts:
            made = [staging.send(each, to) for each, (_, _, to) in zip(given_, wanted, strict=True)]
        assert counts.waited == 0
        for each, (_, _, to), sent in zip(given_, wanted, made, strict=True):
            assert (sent.device.type, sent.dtype) == ("gpu", to)
            assert torch.equal(sent.cpu(), each.to(to))


def test_tensors_that_are_not_contiguous_arrive(gpu: FakeGpu) -> None:
    x = torch.arange(24.0).view(4, 6)
    assert gpu.send(x.t(), torch.float32).tolist() == x.t().tolist()
    assert gpu.send(x[:, ::2], torch.bfloat16).tolist() == x[:, ::2].tolist()


def test_a_block_that_is_written_before_its_copy_is_over_is_seen(gpu: FakeGpu) -> None:
    host = gpu.pinned(16)
    host.fill_(1)
    target = torch.empty(16, dtype=torch.uint8, device="gpu:0")
    copy = gpu.copy_async(lambda: [target.copy_(host, non_blocking=True)])
    assert copy is not None
    copy.wait()
    host.fill_(2)
    with pytest.raises(RuntimeError, match="host memory was changed while a copy from it was under way"):
        copy.join()


def test_bytes_that_are_on_their_way_read_as_nan(gpu: FakeGpu) -> None:
    host = gpu.pinned(16)
    host.fill_(0)
    target = torch.empty(16, dtype=torch.uint8, device="gpu:0")
    copy = gpu.copy_async(lambda: [target.copy_(host, non_blocking=True)])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert target.view(dtype).isnan().all().item()
    assert copy is not None
    copy.wait()
    assert target.tolist() == [0] * 16


def test_the_blocks_are_given_back(gpu: FakeGpu) -> None:
    gpu.send(torch.ones(3), torch.float32)
    assert gpu._staging is not None
    gpu.release_cached()
    assert gpu._staging is None


@pytest.fixture
def float32_settings() -> Iterator[Callable[[], list[str]]]:
    """What torch's switches for float32 on CUDA say; they are put back afterwards."""
    places = [torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]

    def read() -> list[str]:
        return [each.fp32_precision for each in places]

    before = read()
    yield read
    for each, setting in zip(places, before, strict=True):
        each.fp32_precision = setting


@pytest.mark.parametrize(("wanted", "setting"), [(None, "ieee"), ("0", "ieee"), ("1", "tf32")])
def test_float32_is_exact_on_cuda_unless_tf32_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, float32_settings: Callable[[], list[str]], wanted: str | None, setting: str
) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    if wanted is None:
        monkeypatch.delenv("STUDIO_TF32", raising=False)
    else:
        monkeypatch.setenv("STUDIO_TF32", wanted)
    device = devices.Cuda("cuda:0")
    device.enter()
    assert float32_settings() == [setting] * 4
    assert device.float32 == setting
    assert devices.device("cpu").float32 == ""


def test_another_value_of_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_TF32", "yes")
    with pytest.raises(UsageError, match="STUDIO_TF32 is `yes`; it must be `1` or `0`"):
        devices.Cuda("cuda:0").enter()
