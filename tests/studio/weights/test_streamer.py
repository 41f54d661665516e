"""Streamed groups that stay: the loaded bytes, within the limit, read again only when they were dropped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import studio
from studio import devices
from studio.engine.memory.ledger import Ledger, tensor_bytes
from studio.errors import WeightsError
from studio.testing.fake_gpu import FakeGpu
from studio.weights.loading import SafetensorsSource, Streaming, hosting
from studio.weights.streamer import Streamer

WIDTH = 192
LAYER = WIDTH * WIDTH * 4  # bytes of a float32 layer; also in bfloat16 it is above `SMALL`
COUNT = 5


class Chain(torch.nn.Module):
    """Layers one after another; the first is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(COUNT))
        self.shift = torch.nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.layers[0], *self.layers):
            x = torch.tanh(layer(x)) + self.shift
        return x


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two components with unlike weights."""
    draw, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("chains")
    for name in ("a", "b"):
        weights = {key: torch.randn(value.shape, generator=draw) for key, value in Chain().state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
    return sorted(folder.glob("*.safetensors"))


def loaded(file: Path, device: str = "cpu", dtype: str = "float32", how: Streaming | None = None) -> Any:
    with hosting(None, how):
        return studio.module(Chain, [file], device=device, dtype=dtype)


class Reads:
    """Counts the tensors that are read from files."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, read = 0, SafetensorsSource.copy_into

        def counted(source: SafetensorsSource, name: str, memory: torch.Tensor) -> None:
            self.count += 1
            read(source, name, memory)

        patch.setattr(SafetensorsSource, "copy_into", counted)

    def during(self, call: Any, x: torch.Tensor) -> int:
        before = self.count
        call(x)
        return self.count - before


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abf"), st.integers(0, 12 * LAYER)), max_size=8),
       st.sampled_from(["float32", "bfloat16"]))  # fmt: skip
def test_whatever_stays_the_bytes_are_those_of_the_loaded_module(
    files: list[Path], calls: list[tuple[str, int]], dtype: str
) -> None:
    ledger = Ledger()
    streamer = Streamer(devices.device("cpu"), ledger)
    how = Streaming(0, streamer)
    whole = [loaded(file, dtype=dtype) for file in files]
    chains = [loaded(file, dtype=dtype, how=how) for file in files]
    rest = sum(tensor_bytes(each, "cpu") for each in chains)
    x = torch.linspace(-1, 1, WIDTH)[None].to(getattr(torch, dtype))
    with torch.inference_mode():
        for what, size in calls:
            if what == "f":
                streamer.free(size)
                continue
            streamer.begin(size)
            i = "ab".index(what)
            assert torch.equal(chains[i](x), whole[i](x))
            assert streamer.residency.held <= size
            assert sum(tensor_bytes(each, "cpu") for each in chains) == rest + streamer.residency.held
            assert ledger.used == streamer.residency.held + streamer.passing
    for each in chains:
        streamer.forget(each)
    assert ledger.used == 0


def test_groups_are_read_only_when_they_were_dropped(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    streamer = Streamer(devices.device("cpu"))
    chain, other = (loaded(file, how=Streaming(0, streamer)) for file in files)
    reads, x = Reads(monkeypatch), torch.ones(1, WIDTH)
    for room, expected in ((0, COUNT + 1), (0, COUNT + 1), (3, COUNT), (3, COUNT - 3), (COUNT, 2), (COUNT, 0), (2, 3)):
        streamer.begin(room * LAYER)
        assert reads.during(chain, x) == expected
    streamer.begin(COUNT * LAYER)
    reads.during(chain, x)
    assert streamer.grown == 3 * LAYER
    assert reads.during(other, x) == COUNT + 1
    assert reads.during(chain, x) == 1, "the other's first layer was called twice at once, so it stayed"


@pytest.mark.parametrize("host", [None, 0, 6 * LAYER, 40 * LAYER])
def test_on_a_device_that_pins_no_call_waits_and_pinned_groups_are_read_once(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, host: int | None
) -> None:
    whole = [loaded(file) for file in files]
    x = torch.linspace(-1, 1, WIDTH)[None]
    with FakeGpu.installed() as gpu, torch.no_grad():
        memory = None if host is None else Ledger(host)
        streamer = Streamer(gpu, host=memory)
        chains = [loaded(file, gpu.name, how=Streaming(0, streamer)) for file in files]
        reads, there = Reads(monkeypatch), x.to(gpu.name)
        for room in (0, 2, 7, 0, 20):
            streamer.begin(room * LAYER)
            for i in (0, 1, 0):
                with gpu.counting() as counts:
                    made = chains[i](there)
                assert (counts.waited, counts.pageable.total()) == (0, 0)
                assert torch.equal(made.cpu(), whole[i](x))
                assert streamer.residency.held <= room * LAYER
        before = reads.count
        streamer.begin(0)
        chains[0](there)
        assert (reads.count == before) == (host == 40 * LAYER)
        if memory is not None:
            assert memory.used == min(2 * COUNT * LAYER, (memory.budget or 0) // 2)
        for each in chains:
            streamer.forget(each)
        assert memory is None or memory.used == 0


def test_a_call_in_another_thread_disturbs_none_in_this_one(files: list[Path]) -> None:
    whole, x = loaded(files[0]), torch.ones(1, WIDTH)
    streamer = Streamer(devices.device("cpu"))
    chain, other = (loaded(file, how=Streaming(0, streamer)) for file in files)
    streamer.begin(2 * LAYER)
    chain(x)

    def elsewhere(*_: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(other, x).result(), loaded(files[1])(x))

    handle = chain.layers[3].register_forward_pre_hook(elsewhere)  # its weights are in a slot
    assert torch.equal(chain(x), whole(x))
    handle.remove()
    assert streamer.residency.held == 2 * LAYER
    assert not streamer.residency.held_by(other)


def test_libraries_see_the_device_and_the_dtype_of_the_weights(files: list[Path]) -> None:
    """They take the device from the first parameter."""
    with FakeGpu.installed() as gpu:
        chain = loaded(files[0], gpu.name, dtype="bfloat16", how=Streaming(0))
        assert {each.dtype for each in chain.parameters()} == {torch.bfloat16}
        assert any(each.is_meta for each in chain.parameters())
        assert str(next(chain.parameters()).device) == gpu.name


def test_weights_have_the_memory_format_that_the_module_was_given(tmp_path: Path) -> None:
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(48, 64, 3), torch.nn.Conv2d(64, 48, 3))

    file = tmp_path / "convolutions.safetensors"
    save_file(build().state_dict(), file)
    streamer, seen = Streamer(devices.device("cpu")), []
    with hosting(None, Streaming(0, streamer)):
        made = studio.module(build, [file], device="cpu", dtype="float32")
    made.to(memory_format=torch.channels_last)
    for layer in made.children():
        layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.detach()))
    x = torch.randn(1, 48, 8, 8).to(memory_format=torch.channels_last)
    whole = studio.module(build, [file], device="cpu", dtype="float32").to(memory_format=torch.channels_last)
    for room in (0, 1 << 20):
        streamer.begin(room)
        assert torch.equal(made(x), whole(x))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
    assert len(seen) == 4


def test_when_memory_runs_out_less_stays_from_then_on(files: list[Path]) -> None:
    streamer = Streamer(devices.device("cpu"))
    chain = loaded(files[0], how=Streaming(0, streamer))
    assert not streamer.out_of_memory()
    streamer = Streamer(devices.device("cpu"))
    chain = loaded(files[0], how=Streaming(0, streamer))
    streamer.begin(4 * LAYER)
    chain(torch.ones(1, WIDTH))
    assert streamer.residency.held == 4 * LAYER
    assert streamer.out_of_memory()
    assert streamer.residency.held == 0
    streamer.begin(4 * LAYER)
    chain(torch.ones(1, WIDTH))
    assert streamer.residency.held == 2 * LAYER


def test_a_file_that_is_cut_off_meanwhile_is_an_error_and_leaves_nothing(tmp_path: Path, files: list[Path]) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(files[0].read_bytes())
    streamer = Streamer(devices.device("cpu"))
    chain = loaded(file, how=Streaming(0, streamer))
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    for room in (0, COUNT):
        streamer.begin(room * LAYER)
        with pytest.raises(WeightsError, match=r"cut\.safetensors. changed while they were read"):
            chain(torch.ones(1, WIDTH))
    file.write_bytes(files[0].read_bytes())
    assert torch.equal(chain(torch.ones(1, WIDTH)), loaded(files[0])(torch.ones(1, WIDTH)))
    assert streamer.residency.held == COUNT * LAYER
