"""CUDA devices, by torch built for CUDA or for ROCm (whose torch calls itself ``cuda`` too).

The driver is asked for its devices without torch. Nothing here has run on a card of the project's own: what tests show
is shown on the fake device of `studio.testing`, and `benchmarks/gpu.py` is what a card should be given first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from studio.devices.device import Device
from studio.devices.memory import MemoryProbe
from studio.devices.staging import ALIGNMENT, Copy
from studio.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
TF32_VARIABLE = "STUDIO_TF32"
_STICKY = (
    "device-side assert", "illegal memory access", "illegal instruction", "misaligned address",
    "invalid program counter", "launch failure", "launch timed out", "uncorrectable ecc", "hardware stack error",
    "device kernel image is invalid", "no longer available",
)  # fmt: skip


class Cuda(Device):
    """One GPU. Work is queued; copies to it use a stream of their own."""

    kind = "cuda"
    pins_memory = True
    asynchronous = True
    records_graphs = True
    channels_last = True  # cuDNN's tensor cores need it, else it transposes around each convolution. Not measured

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._copies: Any = None  # the copy stream; only one, as the allocator keeps memory per stream
        self._graph_memory: Any = None  # the memory pool that all graphs share

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """A name for each GPU that the driver sees; none if torch is built without CUDA."""
        return tuple(f"cuda:{index}" for index in range(0 if _no_cuda() else _ask_driver()[0]))

    def why_unavailable(self) -> str | None:
        """No CUDA build, no driver, no such GPU, or no kernels for it in this torch. Loads torch if there is a GPU."""
        if reason := _no_cuda():
            return reason
        count = len(self.names())
        if self.index >= count:
            return f"the CUDA driver sees {count} device{'s' if count > 1 else ''}, numbered from 0"
        return _no_kernels(self.index)

    @property
    def description(self) -> str:
        """The name of the GPU."""
        import torch

        return str(torch.cuda.get_device_name(self.index))

    @property
    def label(self) -> str:
        """``cuda:0 (NVIDIA H200)``."""
        return f"{self.name} ({self.description})"

    def versions(self) -> dict[str, str]:
        """The driver, and the CUDA or ROCm that torch is built for."""
        import torch

        runtime = {"rocm": torch.version.hip} if torch.version.hip else {"cuda": torch.version.cuda}
        return {name: str(version) for name, version in (*runtime.items(), ("driver", _driver_version())) if version}

    @property
    def float32(self) -> str:
        """``tf32`` if ``STUDIO_TF32`` is ``1``: 10 mantissa bits, several times as fast. Else ``ieee``: 23 bits.

        Raises UsageError for another value than ``1`` or ``0``.
        """
        wanted = os.environ.get(TF32_VARIABLE, "0")
        if wanted not in ("0", "1"):
            raise UsageError(f"{TF32_VARIABLE} is `{wanted}`; it must be `1` or `0`")
        return "tf32" if wanted == "1" else "ieee"

    def enter(self) -> None:
        """Make it this thread's current device, which Triton, xformers and pinned memory use. Make all float32
        products and convolutions of the process exact, or none; torch's default is one of each.
        """
        import torch

        cudnn: Any = torch.backends.cudnn
        for each in (torch.backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn):
            each.fp32_precision = self.float32
        torch.cuda.set_device(self.index)
        torch.cuda.init()  # type: ignore[no-untyped-call]

    def free_memory(self) -> int | None:
        """Bytes that the driver says are free."""
        import torch

        return int(torch.cuda.mem_get_info(self.index)[0])

    def total_memory(self) -> int | None:
        """The memory of the GPU in bytes."""
        import torch

        return int(torch.cuda.mem_get_info(self.index)[1])

    def memory_probe(self) -> MemoryProbe:
        """A probe that reads torch's allocator."""
        return _AllocatorProbe(self)

    def release_cached(self) -> None:
        """Return cached blocks of device memory and of pinned host memory."""
        super().release_cached()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            with torch.cuda.device(self.index):
                torch.cuda.empty_cache()
            torch.accelerator.empty_host_cache()

    def fast_dtype(self) -> str:
        """bfloat16 if the hardware has it (compute capability 8.0 and later), else float16."""
        import torch

        with torch.cuda.device(self.index):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"

    def synchronize(self) -> None:
        """Wait only for this thread's stream; async copies may still run."""
        import torch

        torch.cuda.current_stream(self.index).synchronize()

    def to_host(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies in one block of pinned memory, as torch rounds each pinned block up to a power of two."""
        import torch

        places, size = [], 0
        for tensor in tensors:
            places.append(size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        block = self.pinned(size)
        copies = []
        for tensor, place in zip(tensors, places, strict=True):
            flat = block[place : place + tensor.nbytes].view(tensor.dtype)
            copies.append(torch.as_strided(flat, tensor.shape, _dense(tensor)))
            copies[-1].copy_(tensor, non_blocking=True)
        self.synchronize()
        return copies

    def host_bytes(self, size: int) -> int:
        """The next power of two, the size that torch pins."""
        return 1 << max(0, size - 1).bit_length()

    def pinned(self, size: int) -> torch.Tensor:
        """torch's allocator keeps it until copies from it are complete."""
        import torch

        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Through pinned memory, which torch's allocator keeps until the copy is complete. Raises RuntimeError while
        a CUDA graph is recorded, as it would read that memory again.
        """
        import torch

        if tensor.is_cuda:
            return tensor
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a copy from the host cannot be recorded")
        return tensor.pin_memory().to(self.name, non_blocking=True)

    def copy_async(self, copy: Callable[[], Iterable[torch.Tensor]]) -> Copy | None:
        """Copy on the copy stream. The memory of the new tensors is kept until this thread's stream is done."""
        import torch

        if self._copies is None:
            self._copies = torch.cuda.Stream(self.index)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(self.index)
        self._copies.wait_stream(here)  # what is copied may have been queued here
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._copies):
            begun.record(self._copies)
            made = list(copy())
            ended.record(self._copies)
        for tensor in made:
            if tensor.is_cuda:
                tensor.record_stream(here)
        return _Copy(self.index, begun, ended)

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """As a CUDA graph. Other threads may allocate meanwhile; graphs share memory, so read the outputs before the
        next replay.
        """
        import torch

        if not self.recordings:
            self._graph_memory = (
                torch.cuda.graph_pool_handle()
            )  # torch does not reuse a pool after all its graphs are deleted
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_memory, capture_error_mode="thread_local"):
            made = work()
        return made, graph.replay

    def recorded_bytes(self) -> int:
        """Free memory in the pool that graphs share, which stays reserved."""
        import torch

        if not self.recordings or self._graph_memory is None:
            return 0
        segments = torch.cuda.memory_snapshot(self._graph_memory)  # type: ignore[no-untyped-call]
        return sum(int(each["total_size"]) - int(each["allocated_size"]) for each in segments)

    def is_lost(self, error: BaseException) -> bool:
        """Sticky errors (illegal access, device-side assert …) end the CUDA context: every later call fails."""
        text = str(error).lower()
        accelerator = type(error).__name__ == "AcceleratorError" or "cuda error" in text or "hip error" in text
        return accelerator and any(words in text for words in _STICKY)


@dataclass
class _Copy:
    """Copies between two events of the copy stream."""

    index: int
    begun: torch.cuda.Event
    ended: torch.cuda.Event

    def wait(self) -> None:
        """Make the current stream wait, not the thread."""
        import torch

        torch.cuda.current_stream(self.index).wait_event(self.ended)

    def join(self) -> None:
        """Make the thread wait."""
        self.ended.synchronize()

    def seconds(self) -> float | None:
        """Seconds between the two events, once both have occurred."""
        return self.begun.elapsed_time(self.ended) / 1000 if self.ended.query() else None  # type: ignore[no-untyped-call]


def _dense(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of a tensor if it is dense in any order of dimensions, else those of a contiguous one."""
    import torch

    return torch.empty_like(tensor, device="meta").stride()


class _AllocatorProbe:
    """Peak memory by torch's allocator: allocated, or reserved if that rose by more."""

    def __init__(self, device: Cuda) -> None:
        self._device, self._allocated, self._reserved = device, 0, 0
        self._recordings, self._recorded = 0, 0

    def begin(self, *, first: bool = False) -> None:
        """Reset the peak statistics; nothing is allocated before torch is loaded."""
        torch, index = sys.modules.get("torch"), self._device.index
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(index)
            self._allocated = int(torch.cuda.memory_allocated(index))
            self._reserved = int(torch.cuda.memory_reserved(index))

    def peak(self) -> int | None:
        """How far the peak rose above the start, in bytes."""
        torch, index = sys.modules.get("torch"), self._device.index
        if torch is None or not torch.cuda.is_initialized():
            return None
        allocated = int(torch.cuda.max_memory_allocated(index)) - self._allocated
        reserved = int(torch.cuda.max_memory_reserved(index)) - self._reserved
        return max(0, allocated, reserved)

    def resident(self) -> int | None:
        """Bytes of live tensors. Other reserved memory is reused, or returned to the driver when memory runs out."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return None
        return int(torch.cuda.memory_allocated(self._device.index))

    def recorded(self) -> int:
        """Bytes that recordings reserve; counted again, which takes milliseconds, when their number changes."""
        count = self._device.recordings
        if count != self._recordings:
            self._recordings, self._recorded = count, self._device.recorded_bytes()
        return self._recorded


@cache
def _no_cuda() -> str | None:
    """Why CUDA cannot be used, or None; reads torch's version file and asks the driver, without loading torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return "torch is not installed"
    text = (Path(next(iter(spec.submodule_search_locations))) / "version.py").read_text()
    if re.search(r"^hip\b[^=]*=\s*['\"]", text, re.MULTILINE):
        return _rocm()
    if not re.search(r"^cuda\b[^=]*=\s*['\"]", text, re.MULTILINE):
        return "torch is built without CUDA or ROCm"
    return _ask_driver()[1]


def _rocm() -> str | None:
    """Why ROCm cannot be used; only torch knows."""
    import torch

    return None if torch.cuda.is_available() else "torch is built for ROCm and sees no GPU"


def _ask_driver() -> tuple[int, str | None]:
    """The number of devices of the CUDA driver, and why there are none (cuInit, cuDeviceGetCount)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.hip:
        return int(torch.cuda.device_count()), None
    driver = _driver()
    if driver is None:
        return 0, "no CUDA driver is installed"
    count = ctypes.c_int(0)
    if code := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0, f"the CUDA driver returned error {code}"
    return count.value, None if count.value else "the CUDA driver sees no device"


def _driver() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def _driver_version() -> str | None:
    """The newest CUDA version that the driver supports (cuDriverGetVersion): ``13.0``."""
    driver, version = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


@cache
def _no_kernels(index: int) -> str | None:
    """Why this torch cannot compute on a GPU: no kernels for its architecture, or a small product fails."""
    import torch

    try:
        x = torch.ones(8, 8, device=f"cuda:{index}")
        total = float((x @ x).sum())
    except Exception as error:  # torch raises RuntimeError and its own kinds; the first line says enough
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"this torch cannot compute on it: {first[:200]}"
    return None if total == 512 else f"a test product is wrong: {total:g} instead of 512"
