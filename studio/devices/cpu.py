"""The CPU."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from studio.devices import torch_setup
from studio.devices.device import Device
from studio.devices.memory import Gauge, NoGauge, ResidentGauge, host_free_memory, may_reset


class Cpu(Device):
    """The processor; work is done when a call returns."""

    kind = "cpu"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """There is one."""
        return ("cpu",)

    def why_not(self) -> str | None:
        """It can always be used."""
        return None

    @property
    def description(self) -> str:
        """The processor's name, as the system gives it."""
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
            if models:
                return models[0].partition(":")[2].strip()
        return platform.processor() or platform.machine()

    def free_memory(self) -> int | None:
        """Bytes that are available on the machine, within the cgroup's limit."""
        return host_free_memory()

    def total_memory(self) -> int | None:
        """The machine's memory in bytes."""
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return None

    def gauge(self) -> Gauge:
        """The high-water mark of resident memory, where the system lets it be reset."""
        return ResidentGauge() if may_reset() else NoGauge()

    def fast_dtype(self) -> str:
        """bfloat16 where the processor multiplies it, else float32.

        Processors without AVX-512 have to widen and round each bfloat16: a training step of the video model took
        thirteen times as long on one.
        """
        torch_setup.prepare()  # this may be what loads torch first, and how its threads wait is settled then
        import torch

        return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
