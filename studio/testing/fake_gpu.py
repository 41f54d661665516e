"""A fake GPU: a device that runs on the CPU and catches the mistakes that only a GPU would show.

Its tensors say ``gpu:0`` and hold a CPU tensor each, so numbers are real: outputs equal the CPU's to the bit. It is
torch's PrivateUse1 backend for Python. On it

- an operator given tensors of the device and of the host raises, as CUDA does (host indices are counted as waits);
- waits for the device are counted with the line that waits: copies of pageable memory, `item`, `nonzero`, host indices;
- copies from and to pageable host memory are counted by themselves too;
- launches are counted: operators that are not views and do not only allocate;
- what is copied beside (`Device.copy_async`) reads NaN until it is waited for, and host memory that changes before
  the copy from it is over raises;
- queued work takes time (`seconds_per_launch`) that passes for the host only when it waits.

What it cannot know is speed, and limits of kernels that a CPU does not have: see `tests/studio/attention`.

Try it::

    with FakeGpu.installed() as gpu:
        model = generator.load(studio.ModelRef(), "gpu:0", "float32")
        with gpu.counting() as counts:
            generator.step(model, states)
        print(counts.waits, counts.launches)
"""

from __future__ import annotations

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
    """What happened meanwhile. `waits` and `pageable` map ``file.py:line what`` to how often; `launches` an operator's
    name. `pageable` are copies from and to host memory that is not pinned: the driver copies it once more.
    """

    waits: Counter[str] = field(default_factory=Counter)
    pageable: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    @property
    def waited(self) -> int:
        """Waits for the device in all."""
        return self.waits.total()

    @property
    def launched(self) -> int:
        """Launches in all."""
        return self.launches.total()


@dataclass
class _Arrival:
    """Copies that land when they are waited for, and took `took` seconds. `read` are the host tensors that they read,
    each with what it was.
    """

    land: list[Callable[[], object]]
    took: float
    read: list[tuple[torch.Tensor, torch.Tensor]]

    def wait(self) -> None:
        """Let them land."""
        while self.land:
            self.land.pop()()

    def join(self) -> None:
        """They are over. Raises RuntimeError if what they read was changed before."""
        self.wait()
        if not all(_same_bytes(now, before) for now, before in self.read):
            raise RuntimeError("host memory was changed while a copy from it was under way")
        self.read.clear()

    def seconds(self) -> float | None:
        """`took`, once they have landed."""
        return None if self.land else self.took


@dataclass(eq=False)
class _Recording:
    """What is done again, and bytes of what was made meanwhile, its outputs among them."""

    steps: list[Callable[[], object]] = field(default_factory=list)
    size: int = 0


class _Gauge(NoMemoryProbe):
    """Knows what recordings keep."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def recorded(self) -> int:
        """All that was made in them."""
        return self._gpu.recorded_bytes()


class FakeGpu(Device):
    """The device ``gpu:0``. `memory` is what it has in bytes; `seconds_per_launch` what a launch takes of its time,
    `seconds_per_copy` what copies beside take.

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
        self.clock = 0.0  # seconds that have passed for the host
        self._queued = 0.0  # seconds of work that the device has still to do
        self._counts: list[Counts] = []
        self._landing: _Arrival | None = None  # while `copy_async` copies
        self._arrivals: list[_Arrival] = []  # copies beside that the host has not waited for
        self._pinned = False  # while what is copied is pinned
        self.records_graphs = False  # whether it records launches as a CUDA graph does; set it to test that
        self.recording: _Recording | None = None  # what `record` records
        self._recorded: WeakSet[_Recording] = WeakSet()
        self.record_failure: BaseException | None = None

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[FakeGpu]:
        """Have the device ``gpu:0`` meanwhile, in all threads. Changes torch for the process while it lasts."""
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
        """There is one."""
        return ("gpu:0",)

    def why_unavailable(self) -> str | None:
        """It can be used while it is installed."""
        return None if self.index == 0 else "there is one fake GPU, 0"

    @property
    def description(self) -> str:
        """What it is."""
        return "fake GPU on the CPU"

    def enter(self) -> None:
        """Raise `failure`, if there is one."""
        if self.failure is not None:
            raise self.failure

    def free_memory(self) -> int | None:
        """All of `memory`."""
        self.enter()
        return self.memory

    def total_memory(self) -> int | None:
        """All of `memory`."""
        return self.memory

    def memory_probe(self) -> MemoryProbe:
        """Measures what recordings keep, and nothing else."""
        return _Gauge(self)

    def fast_dtype(self) -> str:
        """float32, in which outputs equal the CPU's."""
        return "float32"

    def synchronize(self) -> None:
        """Let the queued work take its time."""
        self.clock += self._queued
        self._queued = 0.0
        while self._arrivals:
            arrival = self._arrivals.pop()
            if not arrival.land:  # what nobody waits for may still be under way
                arrival.join()

    def to_host(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies on the host; the thread waits for them."""
        self._pinned = True
        try:
            copies = [tensor.cpu() for tensor in tensors[:1]]
            with self._quiet():  # one wait is for all
                return [*copies, *(tensor.cpu() for tensor in tensors[1:])]
        finally:
            self._pinned = False

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy from pinned memory: nobody waits."""
        self._pinned = True
        try:
            return tensor.to(self.name, non_blocking=True)
        finally:
            self._pinned = False

    def copy_async(self, copy: Callable[[], Iterable[torch.Tensor]]) -> Copy | None:
        """What `copy` copies here reads NaN until it is waited for."""
        self._landing = arrival = _Arrival([], self.seconds_per_copy, [])
        self._arrivals.append(arrival)
        try:
            for _ in copy():
                pass
        finally:
            self._landing = None
        return arrival

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Operators with the tensors and numbers that they were given; repeating them is one launch. What waits, or
        copies from the host, while it is recorded raises, as on CUDA. Unlike there, recording computes too. Raises
        `record_failure`, if there is one.
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
        """Of all that was made while it recorded."""
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
        """Count waits and launches meanwhile."""
        counts = Counts()
        self._counts.append(counts)
        try:
            yield counts
        finally:
            self._counts.remove(counts)

    def waited(self, why: str, *, pageable: bool = False) -> None:
        """Note that the host waits, maybe as it copies `pageable` memory: by which line of which file, innermost first,
        torch and its like left out.
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
        """Note a launch."""
        self._queued += self.seconds_per_launch
        for counts in self._counts:
            counts.launches[name] += 1

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy to the device's `target`; beside, the copy lands later, and until then the target reads NaN."""
        if self._landing is None or not (target.is_floating_point() or target.dtype.itemsize == 1):
            target.copy_(source)
            return
        target.fill_(float("nan") if target.is_floating_point() else 255)  # bytes that are NaN in any floating point
        self._landing.land.append(lambda: target.copy_(source))
        self._landing.read.append((source, source.clone()))

    def record_after(self, calls: int) -> None:
        """Record launches, in all that has been loaded here, after so many calls of a kind."""
        self.records_graphs = True
        for graphs in list(self._graphs):
            graphs.after = calls

    @property
    def copies_pinned(self) -> bool:
        """Whether the memory that is copied now is pinned, so that a copy need not wait."""
        return self._pinned or self._landing is not None


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two host tensors hold the same bytes, NaN included."""
    import torch

    return torch.equal(*(each.contiguous().view(-1).view(torch.uint8) for each in (one, other)))
