"""What the parts share: where they run and how large, how they are timed, and processes of their own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import studio
from studio.devices import Device
from studio.generator import Generator
from studio.plugins import Plugins
from studio.recipe import PluginRef

CASES: dict[str, dict[str, Any]] = {
    "image": {"prompt": "a red apple", "steps": 4}, "text": {"prompt": "an apple", "max_tokens": 12},
    "dcgan": {}, "ddpm": {"steps": 4}, "video": {"prompt": "a horse bouncing", "frames": 8, "steps": 2},
}  # fmt: skip
PLUGIN = PluginRef(name="benchmarks", version="1")
REPOSITORY = Path(__file__).parents[2]
Found = dict[str, Any]


class Clock:
    """What torch.cuda.Event is, where work is done when the call that asks for it returns."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Clock) -> float:
        return (end.at - self.at) * 1e3


@dataclass(frozen=True)
class Bench:
    """Where it runs, and how large: tiny if it is a rehearsal."""

    device: Device
    rehearse: bool

    def of(self, full: Any, tiny: Any) -> Any:
        """A size, a list of sizes or anything else that a rehearsal has in small."""
        return tiny if self.rehearse else full

    @property
    def dtype(self) -> torch.dtype:
        """What the device multiplies quickly."""
        found: torch.dtype = getattr(torch, self.device.fast_dtype())
        return found

    def cases(self) -> dict[str, dict[str, Any]]:
        """Inputs of the built-in generators; in a rehearsal of two, with two steps each."""
        short = {name: {**CASES[name], **{key: 2 for key in ("steps", "max_tokens") if key in CASES[name]}}
                 for name in ("image", "text")}  # fmt: skip
        found: dict[str, dict[str, Any]] = self.of(CASES, short)
        return found

    def seconds(self, work: Callable[[], object]) -> float:
        """Until the device has done it; nothing is waiting before."""
        self.device.synchronize()
        begun = time.perf_counter()
        work()
        self.device.synchronize()
        return time.perf_counter() - begun

    def timed(self, work: Callable[[], object], rounds: int = 12) -> dict[str, float]:
        """Milliseconds, medians: `launch` until the host has asked for the work, `run` until the device has done it,
        `event` between what it passes before and after. The first calls do not count: graphs are recorded in them.
        """
        mark = torch.cuda.Event if self.device.kind == "cuda" else Clock
        warm = self.of(5, 2)
        launches, runs, events = [], [], []
        for turn in range(self.of(rounds, 1) + warm):
            first, last = mark(enable_timing=True), mark(enable_timing=True)
            self.device.synchronize()
            begun = time.perf_counter()
            first.record()
            work()
            last.record()
            asked = time.perf_counter()
            self.device.synchronize()
            if turn >= warm:
                launches.append(asked - begun)
                runs.append(time.perf_counter() - begun)
                events.append(first.elapsed_time(last) / 1e3)
        return {"launch": ms(launches), "run": ms(runs), "event": ms(events)}

    def with_and_without_graphs(self, work: Callable[[], object], rounds: int = 12) -> Found:
        """`timed` as it is, then with every launch asked for by Python, and what recording them gains."""
        recorded = self.timed(work, rounds)
        with self.no_graphs():
            launched = self.timed(work, rounds)
        return {**recorded, "no_graphs": launched, "times_faster": round(launched["run"] / recorded["run"], 2)}

    @contextmanager
    def no_graphs(self) -> Iterator[None]:
        """Record nothing meanwhile, and forget what was recorded."""
        self.device.drop_recordings()
        records, self.device.records_graphs = self.device.records_graphs, False
        try:
            yield
        finally:
            self.device.records_graphs = records

    @contextmanager
    def waits(self) -> Iterator[list[str]]:
        """The lines at which the host waits for the device meanwhile, as torch warns of them; known at the end."""
        mode: Any = torch.cuda.set_sync_debug_mode if self.device.kind == "cuda" else str
        found: list[str] = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            mode("warn")
            try:
                yield found
            finally:
                mode("default")
        found += [f"{Path(each.filename).name}:{each.lineno}" for each in told if "synchroniz" in str(each.message)]

    def randn(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> torch.Tensor:
        """Normal numbers from a seed, made on the host."""
        made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        return made.to(self.device.name, dtype or self.dtype)

    def child(self, name: str, limit_s: float, **environment: str) -> str:
        """What ``gpu.py --child NAME`` says, in a process of its own; its last error if it says nothing."""
        command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu.py"), "--child", name, "--device",
                   self.device.name, *self.of([], ["--rehearse"])]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False,
                              env={**os.environ, **environment})  # fmt: skip
        return told.stdout.strip() or told.stderr.strip()[-400:]

    @contextmanager
    def host(self, **more: Any) -> Iterator[studio.Studio]:
        """A Studio of its own folder on the device."""
        with (
            tempfile.TemporaryDirectory() as folder,
            studio.Studio(home=folder, device=self.device.name, **more) as host,
        ):
            yield host


def ms(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return round(statistics.median(seconds) * 1e3, 4)


def generators() -> dict[str, Generator]:
    """The built-in ones."""
    return dict(Plugins.discover((), user_folder=None).generators)


def error_of(work: Callable[[], torch.Tensor], due: torch.Tensor) -> float | str:
    """The greatest difference, or what it raised."""
    try:
        return float((work().double() - due).abs().max())
    except Exception as error:  # a kernel that does not refuse what it cannot do is what is looked for
        return f"{type(error).__name__}: {error}"[:200]
