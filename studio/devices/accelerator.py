"""MPS (Apple) and XPU (Intel), by torch's modules of those names. The project has run on neither.

They have the protocol of CUDA without async copies from pinned memory, so evicted models are loaded again.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from studio.devices.device import Device


class _Accelerator(Device):
    """The common part: everything comes from torch."""

    asynchronous = True

    @property
    def _module(self) -> Any:
        import torch

        return getattr(torch, self.kind)

    @property
    def label(self) -> str:
        """``xpu:0 (Intel(R) Arc(TM) A770 Graphics)``."""
        return f"{self.name} ({self.description})"

    def synchronize(self) -> None:
        """Wait for all queued work."""
        self._module.synchronize()

    def release_cached(self) -> None:
        """Return the allocator's cached blocks."""
        super().release_cached()
        if "torch" in sys.modules:
            self._module.empty_cache()


class Mps(_Accelerator):
    """The GPU of an Apple processor. Untested."""

    kind = "mps"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """One device, on a Mac."""
        return ("mps:0",) if sys.platform == "darwin" else ()

    def why_unavailable(self) -> str | None:
        """Not a Mac, or a torch without MPS."""
        if self.index or not self.names():
            return "MPS needs a Mac" if sys.platform != "darwin" else "the only MPS device is number 0"
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        import torch

        return None if torch.backends.mps.is_available() else "this torch has no MPS"

    @property
    def description(self) -> str:
        """A fixed name, as Apple's processors do not name their GPU."""
        return "Apple GPU"

    def free_memory(self) -> int | None:
        """torch's recommended maximum, minus what it has allocated."""
        return int(self._module.recommended_max_memory() - self._module.driver_allocated_memory())

    def total_memory(self) -> int | None:
        """torch's recommended maximum."""
        return int(self._module.recommended_max_memory())

    def fast_dtype(self) -> str:
        """float16, as some macOS versions do not support bfloat16."""
        return "float16"


class Xpu(_Accelerator):
    """An Intel GPU. Untested."""

    kind = "xpu"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """One per GPU, if torch is built for XPU."""
        spec = importlib.util.find_spec("torch")
        if spec is None or not spec.submodule_search_locations or not _built_for_xpu(spec.submodule_search_locations):
            return ()
        import torch

        return tuple(f"xpu:{index}" for index in range(torch.xpu.device_count()))

    def why_unavailable(self) -> str | None:
        """A torch without XPU, or no such GPU."""
        count = len(self.names())
        if not count:
            return "this torch is not built for XPU, or sees no GPU"
        return None if self.index < count else f"torch sees {count} XPU devices, numbered from 0"

    @property
    def description(self) -> str:
        """The name of the GPU."""
        return str(self._module.get_device_name(self.index))

    def enter(self) -> None:
        """Make it this thread's current device."""
        self._module.set_device(self.index)

    def free_memory(self) -> int | None:
        """Bytes that the driver says are free."""
        return int(self._module.mem_get_info(self.index)[0])

    def total_memory(self) -> int | None:
        """The memory of the GPU in bytes."""
        return int(self._module.mem_get_info(self.index)[1])

    def fast_dtype(self) -> str:
        """bfloat16, which every GPU that torch supports has."""
        return "bfloat16"


def _built_for_xpu(places: list[str]) -> bool:
    from pathlib import Path

    return any((Path(place) / "lib" / "libtorch_xpu.so").exists() for place in places)
