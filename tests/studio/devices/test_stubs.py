"""What Studio makes of cards that are not here: the answers of torch, and of the driver, are stubs."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import studio
from studio import devices
from studio.devices import cuda, torch_setup
from studio.engine import Engine, Request
from studio.engine.cost.profile import Profile
from studio.engine.memory.ledger import tensor_bytes
from studio.recipe import PluginRef
from studio.testing.fake_gpu import FakeGpu
from studio_gpt.text import TextGenerator


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One card that can be used, as far as it is not asked to compute."""
    monkeypatch.setattr(cuda, "_no_cuda", lambda: None)
    monkeypatch.setattr(cuda, "_ask_driver", lambda: (1, None))
    monkeypatch.setattr(cuda, "_no_kernels", lambda index: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"NVIDIA H200 number {index}")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    return monkeypatch


@pytest.mark.parametrize(("hardware", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_bfloat16_is_taken_where_the_hardware_has_it(card: pytest.MonkeyPatch, hardware: bool, dtype: str) -> None:
    card.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: hardware or including_emulation)
    assert devices.Cuda("cuda:0").fast_dtype() == dtype
    assert TextGenerator().dtype_for("cuda:0") == dtype
    assert TextGenerator().dtype_for("cpu") == "float32"


class Driver:
    """libcuda, of CUDA 13.1."""

    def cuDriverGetVersion(self, version: Any) -> int:
        ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = 13010
        return 0


def test_a_card_is_named_with_its_driver_and_cuda(card: pytest.MonkeyPatch) -> None:
    card.setattr(cuda, "_driver", Driver)
    card.setattr(torch.version, "cuda", "13.0")
    assert devices.Cuda("cuda:1").label == "cuda:1 (NVIDIA H200 number 1)"
    assert devices.Cuda("cuda:1").versions() == {"cuda": "13.0", "driver": "13.1"}


def test_torch_for_rocm_is_taken_as_cuda(card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card.undo()
    (tmp_path / "version.py").write_text("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.1'\n")
    card.setattr(cuda.importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path]))
    card.setattr(cuda, "_no_cuda", cuda._no_cuda.__wrapped__)
    card.setattr(cuda, "_driver", lambda: None)
    card.setattr(torch.version, "hip", "6.4.1")
    assert devices.why_unavailable("cuda:0") == "torch is built for ROCm and sees no GPU"
    card.setattr(torch.cuda, "is_available", lambda: True)
    card.setattr(torch.cuda, "device_count", lambda: 2)
    card.setattr(cuda, "_no_kernels", lambda index: None)
    assert devices.Cuda.names() == ("cuda:0", "cuda:1")
    assert devices.choose("cuda:1") == "cuda:1"
    assert devices.Cuda("cuda:0").versions() == {"rocm": "6.4.1"}


def test_a_card_is_tried_with_a_small_product(card: pytest.MonkeyPatch) -> None:
    card.undo()

    def fails(*shape: int, device: str) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with …")

    wrong = torch.full((8, 8), 2.0)
    for ones, reason in [
        (fails, "this torch cannot compute on it: CUDA error: no kernel image is available"),
        (lambda *shape, device: wrong, "a test product is wrong: 2048 instead of 512"),
        (lambda *shape, device: wrong / 2, None),
    ]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "ones", ones)
            assert cuda._no_kernels.__wrapped__(0) == reason


def test_who_leaves_the_choice_to_studio_is_told_of_cards_that_cannot_be_used(
    card: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card.setattr(cuda, "_no_kernels", lambda index: "this torch cannot compute on it: no kernel image")
    told = "the device `cuda:0` is not used: this torch cannot compute on it: no kernel image"
    with studio.Studio(home=tmp_path) as host:
        made = host.generate("template", text="pear")
    assert made.recipe is not None
    assert made.recipe.device == "cpu"
    assert told in made.recipe.notices


class Streams:
    """torch.cuda's streams and events, which do all at once and are counted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made = 0
        event = SimpleNamespace(record=lambda stream: None)
        for name, value in {
            "Stream": self._make, "Event": lambda **_: event, "stream": lambda stream: nullcontext(),
            "current_stream": lambda index: SimpleNamespace(),
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)

    def _make(self, index: int) -> Any:
        self.made += 1
        return SimpleNamespace(wait_stream=lambda stream: None)


def test_a_card_has_one_stream_of_copies_in_all(card: pytest.MonkeyPatch) -> None:
    streams, device = Streams(card), devices.Cuda("cuda:0")
    for _ in range(3):
        assert device.copy_async(lambda: [torch.zeros(1)]) is not None
    assert streams.made == 1, "what one stream has allocated is not given to others"


def test_segments_of_memory_grow_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    torch_setup.prepare()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    torch_setup.prepare()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"


def test_memory_of_a_card_is_what_tensors_have_and_what_recordings_keep(card: pytest.MonkeyPatch) -> None:
    now = {"memory_allocated": 100, "memory_reserved": 300, "max_memory_allocated": 0, "max_memory_reserved": 0}
    for name in now:
        card.setattr(torch.cuda, name, lambda index, name=name: now[name])
    card.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: None)
    device = devices.Cuda("cuda:0")
    probe = device.memory_probe()
    probe.begin()
    now |= {"max_memory_allocated": 150, "max_memory_reserved": 340}
    assert probe.peak() == 50
    now["max_memory_reserved"] = 400
    assert probe.peak() == 100, "what it had to take for them"
    assert probe.resident() == 100, "what is reserved beyond goes to the next call"
    assert probe.recorded() == 0
    asked: list[object] = []

    def snapshot(pool: object) -> list[dict[str, int]]:
        asked.append(pool)
        return [{"total_size": 70, "allocated_size": 10}, {"total_size": 20, "allocated_size": 20}]

    card.setattr(torch.cuda, "memory_snapshot", snapshot)
    kept = [1, 2]
    device.register_graphs(SavedEntry(kept))  # type: ignore[arg-type]
    device._graph_memory = (0, 1)
    assert [probe.recorded(), probe.recorded(), len(asked)] == [0, 0, 0], "nobody has them any more"
    alive = SavedEntry(kept)
    device.register_graphs(alive)  # type: ignore[arg-type]
    assert [probe.recorded(), probe.recorded()] == [60, 60]
    assert asked == [(0, 1)], "it is counted when their number changes"
    kept.clear()
    assert probe.recorded() == 0


class SavedEntry:
    """So many recordings."""

    def __init__(self, kept: list[int]) -> None:
        self.kept = kept

    def __len__(self) -> int:
        return len(self.kept)


def test_tensors_of_another_card_do_not_count() -> None:
    class There:
        device = torch.device("cuda", 1)

        def untyped_storage(self) -> SimpleNamespace:
            return SimpleNamespace(data_ptr=lambda: 8, nbytes=lambda: 64)

    there = There()
    assert [tensor_bytes([there], name) for name in ("cuda:0", "cuda:1", "cuda", "cpu")] == [0, 64, 0, 0]


class Here(studio.Generator):
    """Say nothing."""

    name, output = "here", studio.Text

    class Inputs(studio.Inputs):
        pass

    class State(studio.State):
        pass

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.State:
        return studio.State(steps=1)

    def step(self, model: Any, states: Any) -> list[studio.State]:
        return [studio.State(steps=1, position=1) for _ in states]

    def finish(self, model: Any, state: studio.State) -> studio.Text:
        return studio.Text("")


def ask(engine: Engine) -> studio.Media:
    made = Here()
    request = Request.of(made, made.Inputs(), seed=1, plugin=PluginRef(name="test", version="1"))
    return engine.submit(request).result(500)


def test_what_was_measured_on_another_card_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile()
    with FakeGpu.installed():
        for label in ("gpu:0 (one)", "gpu:0 (other)"):
            monkeypatch.setattr(FakeGpu, "label", label)
            with Engine("gpu", profile=profile) as engine:
                made = ask(engine)
            assert made.recipe is not None
            assert made.recipe.device == label
    assert {row.device for row in profile.rows()} == {"gpu:0 (one)", "gpu:0 (other)"}


def test_the_thread_that_computes_enters_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted_requests: list[str] = []
    monkeypatch.setattr(FakeGpu, "enter", lambda self: admitted_requests.append(threading.current_thread().name))
    with FakeGpu.installed(), Engine("gpu") as engine:
        ask(engine)
    assert "studio-engine" in admitted_requests


def test_engines_share_the_host_memory_that_models_wait_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.engine.engine.host_free_memory", lambda: 1000)
    with FakeGpu.installed():
        for names, share in (("gpu:0", 500), ("gpu:0,cpu", 250)):
            with studio.Studio(home=tmp_path, device=names) as host:
                ledger = host.router.engines[0]._models.components.host
                assert ledger is not None
                assert ledger.budget == share


def mps(patch: pytest.MonkeyPatch, called: Callable[[str], Callable[..., None]]) -> None:
    patch.setattr(sys, "platform", "darwin")
    patch.setattr(torch.backends.mps, "is_available", lambda: True)
    patch.setattr(torch, "mps", SimpleNamespace(
        recommended_max_memory=lambda: 100, driver_allocated_memory=lambda: 30, synchronize=called("waited"),
        empty_cache=called("emptied"),
    ))  # fmt: skip


def xpu(patch: pytest.MonkeyPatch, called: Callable[[str], Callable[..., None]]) -> None:
    patch.setattr(devices.accelerator, "_built_for_xpu", lambda places: True)
    patch.setattr(torch, "xpu", SimpleNamespace(
        device_count=lambda: 2, mem_get_info=lambda index: (70, 100), synchronize=called("waited"),
        empty_cache=called("emptied"), set_device=called("entered"), get_device_name=lambda index: "Intel Arc",
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("install", "name", "label", "dtype", "does"),
    [
        (mps, "mps:0", "mps:0 (Apple GPU)", "float16", ["waited", "emptied"]),
        (xpu, "xpu:1", "xpu:1 (Intel Arc)", "bfloat16", ["entered", "waited", "emptied"]),
    ],
)
def test_mps_and_xpu_have_the_same_protocol(
    monkeypatch: pytest.MonkeyPatch, install: Any, name: str, label: str, dtype: str, does: list[str]
) -> None:
    done: list[str] = []
    install(monkeypatch, lambda what: lambda *_: done.append(what))
    assert devices.choose(name) == name
    device = devices.device(name)
    assert name in type(device).names()
    assert device.why_unavailable() is None
    assert type(device)(f"{device.kind}:7").why_unavailable() is not None
    assert (device.free_memory(), device.total_memory(), device.fast_dtype()) == (70, 100, dtype)
    assert device.label == label
    device.enter()
    device.synchronize()
    device.release_cached()
    assert done == does
    assert not device.pins_memory
    assert not device.records_graphs
    assert device.recorded_bytes() == 0
