"""A fake GPU: a device that runs on the CPU and catches the mistakes that only a GPU would show.

Its tensors have the device ``gpu:0`` and wrap a CPU tensor each, so numbers are real: outputs equal the CPU's exactly.
It is torch's PrivateUse1 backend for Python. On it

- an operator with tensors of the device and of the host raises, as on CUDA (host indices count as synchronizations);
- synchronizations are counted with their line: copies of pageable memory, `item`, `nonzero`, host indices;
- copies from and to pageable host memory are also counted separately;
- launches are counted: operators that are not views and do not only allocate;
- the target of an async copy (`Device.copy_async`) reads NaN until it is synchronized, and changing host memory
  before a copy from it has ended raises;
- queued work takes simulated time (`seconds_per_launch`), which passes for the host only when it synchronizes.

It cannot show speed, or limits of CUDA kernels: see `tests/studio/attention`.

Try it::

    with FakeGpu.installed() as gpu:
        model = generator.load(studio.ModelRef(), "gpu:0", "float32")
        with gpu.counting() as counts:
            generator.step(model, states)
        print(counts.waits, counts.launches)
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar
from weakref import WeakSet

from studio import devices
from studio.devices import Copy, Device
from studio.devices.memory import MemoryProbe, NoMemoryProbe

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_KIND = "gpu"
_HERE = str(Path(__file__).parent)
_TORCH = ("/torch/", "/diffusers/", "/transformers/", "/open_clip/")


@dataclass
class Counts:
    """Counts within a block. `waits` (synchronizations) and `pageable` map ``file.py:line what`` to their number,
    `launches` maps an operator's name. `pageable` are copies from and to host memory that is not pinned, which the
    driver copies once more.
    """

    waits: Counter[str] = field(default_factory=Counter)
    pageable: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    @property
    def waited(self) -> int:
        """The total number of synchronizations."""
        return self.waits.total()

    @property
    def launched(self) -> int:
        """The total number of launches."""
        return self.launches.total()


@dataclass
class _Arrival:
    """Async copies that arrive when they are synchronized, and took `took` seconds. `read` are the host tensors that
    they read, each with its content.
    """

    land: list[Callable[[], object]]
    took: float
    read: list[tuple[torch.Tensor, torch.Tensor]]

    def wait(self) -> None:
        """Complete the copies."""
        while self.land:
            self.land.pop()()

    def join(self) -> None:
        """End the copies. Raises RuntimeError if their source was changed before."""
        self.wait()
        if not all(_same_bytes(now, before) for now, before in self.read):
            raise RuntimeError("host memory was changed while a copy from it was under way")
        self.read.clear()

    def seconds(self) -> float | None:
        """`took`, once they have arrived."""
        return None if self.land else self.took


@dataclass(eq=False)
class _Recording:
    """The operators to replay, and the bytes of the tensors created while recording, outputs included."""

    steps: list[Callable[[], object]] = field(default_factory=list)
    size: int = 0


class _Gauge(NoMemoryProbe):
    """A memory probe that knows only the memory of recordings."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def recorded(self) -> int:
        """The bytes of all tensors created in recordings."""
        return self._gpu.recorded_bytes()


class FakeGpu(Device):
    """The device ``gpu:0``. `memory` is its memory in bytes; `seconds_per_launch` is the simulated time of a launch,
    `seconds_per_copy` that of an async copy.

    `failure`, if set, is raised when an engine opens the device or asks for its memory.
    """

    kind = _KIND
    pins_memory = True
    asynchronous = True
    current: ClassVar[FakeGpu | None] = None

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.memory = 8 << 30
        self.seconds_per_launch = self.seconds_per_copy = 0.0
        self.failure: BaseException | None = None
        self.entered: set[threading.Thread] = set()  # threads that have opened the device, as each engine's must
        self.clock = 0.0  # seconds that have passed for the host
        self._queued = 0.0  # seconds of work that the device has still to do
        self._counts: list[Counts] = []
        self._landing: _Arrival | None = None  # while `copy_async` copies
        self._arrivals: list[_Arrival] = []  # async copies that are not synchronized yet
        self._pinned = False  # while what is copied is pinned
        self.records_graphs = False  # whether it records launches as a CUDA graph does; set it to test that
        self.recording: _Recording | None = None  # what `record` records
        self._recorded: WeakSet[_Recording] = WeakSet()
        self.record_failure: BaseException | None = None

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[FakeGpu]:
        """Install the device ``gpu:0`` within the block, in all threads. Patches torch for the process meanwhile."""
        from studio.testing import fake_tensor

        fake_tensor.install()
        devices.register(_KIND, cls)
        cls.current = gpu = cls("gpu:0")
        devices._devices["gpu:0"] = gpu
        with fake_tensor.patched(gpu):
            try:
                yield gpu
            finally:
                cls.current = None
                del devices._devices["gpu:0"], devices._kinds[_KIND]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The name of the only device."""
        return ("gpu:0",)

    def why_unavailable(self) -> str | None:
        """Empty while it is installed."""
        return None if self.index == 0 else "there is one fake GPU, 0"

    @property
    def description(self) -> str:
        """A description for users."""
        return "fake GPU on the CPU"

    def enter(self) -> None:
        """Note the thread in `entered`. Raises `failure`, if there is one."""
        self._check()
        self.entered.add(threading.current_thread())

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def free_memory(self) -> int | None:
        """All of `memory`. Raises `failure`, if there is one."""
        self._check()
        return self.memory

    def total_memory(self) -> int | None:
        """All of `memory`."""
        return self.memory

    def memory_probe(self) -> MemoryProbe:
        """A probe of the memory of recordings only."""
        return _Gauge(self)

    def fast_dtype(self) -> str:
        """float32, in which outputs equal the CPU's."""
        return "float32"

    def synchronize(self) -> None:
        """Let the simulated time of the queued work pass."""
        self.clock += self._queued
        self._queued = 0.0
        while self._arrivals:
            arrival = self._arrivals.pop()
            if not arrival.land:  # what nobody waits for may still be under way
                arrival.join()

    def to_host(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy to the host, which synchronizes."""
        self._pinned = True
        try:
            copies = [tensor.cpu() for tensor in tensors[:1]]
            with self._quiet():  # one wait is for all
                return [*copies, *(tensor.cpu() for tensor in tensors[1:])]
        finally:
            self._pinned = False

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy from pinned memory, without synchronizing."""
        self._pinned = True
        try:
            return tensor.to(self.name, non_blocking=True)
        finally:
            self._pinned = False

    def copy_async(self, copy: Callable[[], Iterable[torch.Tensor]]) -> Copy | None:
        """Copy asynchronously: targets of `copy` read NaN until they are synchronized."""
        self._landing = arrival = _Arrival([], self.seconds_per_copy, [])
        self._arrivals.append(arrival)
        try:
            for _ in copy():
                pass
        finally:
            self._landing = None
        return arrival

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record operators with their arguments; replaying them is one launch. Synchronizing or copying from the host
        while recording raises, as on CUDA. Unlike CUDA, recording computes too. Raises `record_failure`, if set.
        """
        self.recording = recording = _Recording()
        self._recorded.add(recording)
        try:
            made = work()
            if self.record_failure is not None:
                raise self.record_failure
        finally:
            self.recording = None

        def replay() -> None:
            self.launched("graph")
            for step in recording.steps:
                step()

        return made, replay

    def recorded_bytes(self) -> int:
        """The bytes of all tensors created while recording."""
        return sum(each.size for each in self._recorded)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        counts, self._counts = self._counts, []
        try:
            yield
        finally:
            self._counts = counts

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count synchronizations and launches within the block."""
        counts = Counts()
        self._counts.append(counts)
        try:
            yield counts
        finally:
            self._counts.remove(counts)

    def waited(self, why: str, *, pageable: bool = False) -> None:
        """Count a synchronization, maybe by a copy of `pageable` memory, with its file and line: the innermost frame
        outside torch and similar libraries.
        """
        if self.recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: it {why}")
        self.synchronize()
        if not self._counts:
            return
        frames = [each for each in traceback.extract_stack() if not each.filename.startswith(_HERE)]
        ours = [each for each in frames if not any(part in each.filename for part in _TORCH)]
        place = (ours or frames)[-1]
        for counts in self._counts:
            place_and_reason = f"{place.filename.rpartition('/')[2]}:{place.lineno} {why}"
            counts.waits[place_and_reason] += 1
            if pageable:
                counts.pageable[place_and_reason] += 1

    def launched(self, name: str) -> None:
        """Count a launch."""
        self._queued += self.seconds_per_launch
        for counts in self._counts:
            counts.launches[name] += 1

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy to the device's `target`; an async copy arrives later, and until then the target reads NaN."""
        if self._landing is None or not (target.is_floating_point() or target.dtype.itemsize == 1):
            target.copy_(source)
            return
        target.fill_(float("nan") if target.is_floating_point() else 255)  # bytes that are NaN in any floating point
        self._landing.land.append(lambda: target.copy_(source))
        self._landing.read.append((source, source.clone()))

    def record_after(self, calls: int) -> None:
        """Record CUDA graphs, in all models that were loaded here, after `calls` calls of a kind."""
        self.records_graphs = True
        for graphs in list(self._graphs):
            graphs.after = calls

    @property
    def copies_pinned(self) -> bool:
        """Whether the memory that is being copied is pinned, so that the copy need not synchronize."""
        return self._pinned or self._landing is not None


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two host tensors have equal bytes, including NaN."""
    import torch

    return torch.equal(*(each.contiguous().view(-1).view(torch.uint8) for each in (one, other)))
