"""The CPU."""

from __future__ import annotations

import mmap
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from studio.devices import torch_setup
from studio.devices.device import Device
from studio.devices.memory import MemoryProbe, NoMemoryProbe, ResidentMemoryProbe, host_free_memory, may_reset

if TYPE_CHECKING:
    import torch


class Cpu(Device):
    """The processor; work is complete when a call returns."""

    kind = "cpu"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """One device."""
        return ("cpu",)

    def why_unavailable(self) -> str | None:
        """None: it can always be used."""
        return None

    @property
    def description(self) -> str:
        """The processor's name, from the system."""
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
            if models:
                return models[0].partition(":")[2].strip()
        return platform.processor() or platform.machine()

    def block(self, size: int) -> torch.Tensor:
        """Memory of its own mapping, which the system has back as soon as it is freed; the C library would keep it."""
        import torch

        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            return super().block(size)
        return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)

    def free_memory(self) -> int | None:
        """Available host memory in bytes, within the cgroup's limit."""
        return host_free_memory()

    def total_memory(self) -> int | None:
        """The machine's memory in bytes."""
        import psutil

        return int(psutil.virtual_memory().total)

    def memory_probe(self) -> MemoryProbe:
        """The high-water mark of resident memory, if the system can reset it."""
        return ResidentMemoryProbe() if may_reset() else NoMemoryProbe()

    def fast_dtype(self) -> str:
        """bfloat16 if the processor has instructions for it, else float32.

        Processors without AVX-512 have to widen and round each bfloat16: a training step of the video model took
        thirteen times as long on one.
        """
        torch_setup.prepare()  # this may load torch first, and loading it fixes how its threads wait
        import torch

        return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
