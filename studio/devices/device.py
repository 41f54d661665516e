"""Device: what the engine asks of the hardware that models run on. The defaults are those of a CPU: all work is done
when the call that asked for it returns.

An accelerator runs work later than it is asked for: `settle` waits for all that is queued, and `copy_beside` copies on
a stream of its own. Subclasses are in `cpu`, `cuda` and `accelerator`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar
from weakref import WeakSet

from studio.devices.memory import Gauge, NoGauge
from studio.devices.staging import Staging

if TYPE_CHECKING:
    import torch

    from studio.devices.graphs import Graphs

T = TypeVar("T")
_ALIGNMENT = 16  # bytes, between tensors of one block


class Copy(Protocol):
    """Copies that go on beside what is computed."""

    def wait(self) -> None:
        """Let all that this thread queues from now on wait for them."""

    def join(self) -> None:
        """Let the host wait until they are over: the memory that they read may be changed from then on."""

    def seconds(self) -> float | None:
        """What they took, or None while they go on."""


class Device:
    """One device; `name` is ``cpu`` or ``cuda:0``. Raises nothing when made: `why_not` says whether it can be used.

    `kind` is torch's name of the device type. `pins` says whether host memory can be pinned for copies to it.
    `queues` says whether work is done later than it is asked for. `records` says whether it can `record`.
    `channels_last` says whether convolutions of U-Nets are to have that layout.
    """

    kind: ClassVar[str]
    pins: ClassVar[bool] = False
    queues: ClassVar[bool] = False
    records: bool = False
    channels_last: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = int(name.partition(":")[2] or 0)
        self._staging: Staging | None = None
        self._lock = threading.Lock()
        self._graphs: WeakSet[Graphs] = WeakSet()

    def keeps(self, graphs: Graphs) -> None:
        """Note who has recordings of it."""
        self._graphs.add(graphs)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the devices of this kind that the driver sees; does not load torch."""
        raise NotImplementedError

    def why_not(self) -> str | None:
        """Why it cannot be used, or None if it can."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """The hardware's name, as recipes and measurements give it: ``NVIDIA H200``."""
        raise NotImplementedError

    @property
    def float32(self) -> str:
        """How float32 numbers are multiplied where the device has several ways: ``ieee`` or ``tf32``. Else empty."""
        return ""

    def versions(self) -> dict[str, str]:
        """Versions of the driver and of the runtime that decide about results."""
        return {}

    @property
    def label(self) -> str:
        """Name and hardware, so that what was measured on another card is not believed: ``cuda:0 (NVIDIA H200)``."""
        return self.name

    def enter(self) -> None:
        """Make it the current device of this thread, and open it. Raises what the driver raises if that fails."""

    def free_memory(self) -> int | None:
        """Bytes that are free, or None if the system does not say."""
        raise NotImplementedError

    def total_memory(self) -> int | None:
        """Bytes that there are, or None if the system does not say."""
        raise NotImplementedError

    def gauge(self) -> Gauge:
        """Measures the memory that calls take."""
        return NoGauge()

    def release_cached(self) -> None:
        """Give back what the allocator keeps without need, and the pinned memory that weights came through."""
        self._staging = None

    def fast_dtype(self) -> str:
        """The dtype to load models in: the shortest that the hardware multiplies quickly and exactly enough."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait for the work that this thread has queued. What failed there is raised here."""

    def to_host(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies in host memory, pinned if `pins`; they are complete when this returns."""
        return [tensor.to("cpu", copy=True) for tensor in tensors]

    def host_bytes(self, size: int) -> int:
        """Bytes of host memory that `to_host` takes for tensors of `size` bytes together."""
        return size

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device: itself if it is there, else a copy, without a wait for the device where it can pin.
        The tensor must not be changed afterwards.
        """
        return tensor.to(self.name)

    def pinned(self, size: int) -> torch.Tensor:
        """`size` bytes of host memory to copy to the device from, uninitialised; pinned if `pins`."""
        import torch

        return torch.empty(size, dtype=torch.uint8)

    def send(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy of a host tensor on the device, cast to `dtype`, for weights. Where the device pins, it goes through
        two blocks of pinned memory by turns and the host waits for neither copy nor cast.
        """
        if not self.pins:
            return tensor.to(self.name, dtype, copy=True)
        with self._lock:
            if self._staging is None:
                self._staging = Staging(self)
            return self._staging.send(tensor, dtype)

    def upload_all(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Small host tensors on the device by one copy; they become views of one block."""
        if not self.queues:
            return [self.upload(tensor) for tensor in tensors]
        import torch

        places, size = [], 0
        for tensor in tensors:
            places.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        block = torch.empty(size, dtype=torch.uint8)
        for tensor, place in zip(tensors, places, strict=True):
            block[place : place + tensor.nbytes].view(tensor.dtype).copy_(tensor.flatten())
        there = self.upload(block)
        return [
            there[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, place in zip(tensors, places, strict=True)
        ]

    def copy_beside(self, copy: Callable[[], Iterable[torch.Tensor]]) -> Copy | None:
        """Call `copy`, which copies to the device and returns the new tensors, beside what is computed.

        The tensors must not be used before `wait` of what is returned. None means that the copies are done.
        """
        for _ in copy():
            pass
        return None

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Call `work` and record what it launches without computing it. Returns what it returned, whose tensors are
        written each time that the second is called. Raises RuntimeError where `work` does what cannot be recorded:
        waits, or copies from the host.
        """
        raise NotImplementedError

    @property
    def recordings(self) -> int:
        """How many recordings are kept."""
        return sum(len(graphs) for graphs in list(self._graphs))

    @property
    def not_recorded(self) -> list[str]:
        """Why what could not be recorded could not."""
        return [reason for graphs in list(self._graphs) for reason in graphs.failed.values()]

    def recorded_bytes(self) -> int:
        """Bytes of the device's memory that recordings keep to themselves, besides tensors that are alive."""
        return 0

    def drop_recordings(self, *, short: bool = False) -> None:
        """Forget what was recorded: weights move, and recordings read them where they were; or memory is `short`."""
        for graphs in list(self._graphs):
            graphs.drop(short=short)

    def is_lost(self, error: BaseException) -> bool:
        """Whether the error has made the device unusable for the whole process (a sticky error of CUDA)."""
        return False
