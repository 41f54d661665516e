"""Device: what the engine needs of the hardware that models run on. The defaults suit a CPU, where work is synchronous.

An accelerator runs work asynchronously: `synchronize` waits for queued work, and `copy_async` copies on a stream of its
own. Subclasses are in `cpu`, `cuda` and `accelerator`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar
from weakref import WeakSet

from studio.devices.memory import MemoryProbe, NoMemoryProbe
from studio.devices.staging import Copy, Staging

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_ALIGNMENT = 16  # bytes, between tensors of one block


class Recordings(Protocol):
    """CUDA graphs that were recorded on a device; see `graphs.Graphs`."""

    after: int
    failed: dict[Hashable, str]

    def __len__(self) -> int:
        """How many are stored."""

    def drop(self, *, short: bool = False) -> None:
        """Delete them; `short` says that memory is short."""


class Device:
    """One device; `name` is ``cpu`` or ``cuda:0``. The constructor raises nothing: `why_unavailable` says whether the
    device can be used.

    `kind` is torch's name of the device type. `pins_memory` says whether host memory can be pinned for copies to it.
    `asynchronous` says whether work is queued instead of run at once. `records_graphs` says whether `record` works
    (CUDA graphs). `channels_last` says whether convolutions of U-Nets should use that layout.
    """

    kind: ClassVar[str]
    pins_memory: ClassVar[bool] = False
    asynchronous: ClassVar[bool] = False
    records_graphs: bool = False
    channels_last: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = int(name.partition(":")[2] or 0)
        self._staging: Staging | None = None
        self._lock = threading.Lock()
        self._graphs: WeakSet[Recordings] = WeakSet()

    def register_graphs(self, graphs: Recordings) -> None:
        """Register the recordings of this device, so that they can be dropped."""
        self._graphs.add(graphs)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the devices of this kind that the driver sees; does not load torch."""
        raise NotImplementedError

    def why_unavailable(self) -> str | None:
        """Why it cannot be used, or None if it can."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """The name of the hardware, for recipes and measurements: ``NVIDIA H200``."""
        raise NotImplementedError

    @property
    def float32(self) -> str:
        """The float32 precision of matrix products, if the device has several: ``ieee`` or ``tf32``. Else empty."""
        return ""

    def versions(self) -> dict[str, str]:
        """Versions of the driver and the runtime, which results depend on."""
        return {}

    @property
    def label(self) -> str:
        """Name and hardware, so that measurements of another GPU are not used: ``cuda:0 (NVIDIA H200)``."""
        return self.name

    def enter(self) -> None:
        """Make it the current device of this thread, and open it. Raises what the driver raises if that fails."""

    def free_memory(self) -> int | None:
        """Bytes that are free, or None if the system does not say."""
        raise NotImplementedError

    def total_memory(self) -> int | None:
        """The memory of the device in bytes, or None if the system does not say."""
        raise NotImplementedError

    def memory_probe(self) -> MemoryProbe:
        """A probe of the peak memory of calls."""
        return NoMemoryProbe()

    def release_cached(self) -> None:
        """Return the allocator's cached blocks, and the pinned memory for staging weights."""
        self._staging = None

    def fast_dtype(self) -> str:
        """The dtype to load models in: the shortest that the hardware multiplies fast and precisely enough."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for the work that this thread has queued. Raises the errors of that work."""

    def to_host(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies in host memory, pinned if `pins_memory`; they are complete when this returns."""
        return [tensor.to("cpu", copy=True) for tensor in tensors]

    def host_bytes(self, size: int) -> int:
        """Bytes of host memory that `to_host` needs for tensors of `size` bytes in total."""
        return size

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device: itself if it is there, else a copy, without a wait for the device if it can pin.
        The tensor must not be changed afterwards.
        """
        return tensor.to(self.name)

    def pinned(self, size: int) -> torch.Tensor:
        """`size` bytes of host memory to copy to the device from, uninitialised; pinned if `pins_memory`."""
        import torch

        return torch.empty(size, dtype=torch.uint8)

    def block(self, size: int) -> torch.Tensor:
        """`size` bytes on the device, uninitialised."""
        import torch

        return torch.empty(size, dtype=torch.uint8, device=self.name)

    def send(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy of a host tensor on the device, cast to `dtype`, for weights. If the device pins, it goes through
        two blocks of pinned memory by turns and the host waits for neither copy nor cast.
        """
        if not self.pins_memory:
            return tensor.to(self.name, dtype, copy=True)
        with self._lock:
            if self._staging is None:
                self._staging = Staging(self)
            return self._staging.send(tensor, dtype)

    def upload_all(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Small host tensors on the device, by one copy; they become views of one block."""
        if not self.asynchronous:
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

    def copy_async(self, copy: Callable[[], Iterable[torch.Tensor]]) -> Copy | None:
        """Async copy: call `copy`, which copies to the device and returns the new tensors, while the device computes.

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
        """The number of stored recordings (CUDA graphs)."""
        return sum(len(graphs) for graphs in list(self._graphs))

    @property
    def not_recorded(self) -> list[str]:
        """The reasons why calls could not be recorded."""
        return [reason for graphs in list(self._graphs) for reason in graphs.failed.values()]

    def recorded_bytes(self) -> int:
        """Bytes of device memory that recordings reserve, besides live tensors."""
        return 0

    def drop_recordings(self, *, short: bool = False) -> None:
        """Delete all recordings, because weights move to other addresses, or because memory is `short`."""
        for graphs in list(self._graphs):
            graphs.drop(short=short)

    def is_lost(self, error: BaseException) -> bool:
        """Whether the error makes the device unusable for this process (a sticky CUDA error)."""
        return False
