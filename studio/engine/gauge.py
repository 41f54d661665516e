"""Gauges: how much memory a call took at its peak besides what was held before it.

On CUDA it is the allocator's own count, exact for tensors. On Linux it is the kernel's high-water mark of the process's
resident memory, reset before each call (about 25 µs): it counts everything, libraries' scratch memory included. Its
error: memory that the allocator had kept from earlier calls is not counted again, so it is asked to return that before
the first call of a kind, and of several readings the greatest is kept; other threads of the process are counted in; it
is in whole pages. Elsewhere nothing is measured. This module knows nothing of the ledger.

Try it: ``python -c "from studio.engine.gauge import *; print(free_memory('cpu'))"``
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Protocol

_CLEAR, _STATUS, _PAGES = "/proc/self/clear_refs", "/proc/self/status", "/proc/self/statm"
_RESET_PEAK = b"5"  # proc(5): resets the peak resident set size
_HIGH = re.compile(rb"^VmHWM:\s*(\d+) kB", re.MULTILINE)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_NOW = re.compile(rb"^VmRSS:\s*(\d+) kB", re.MULTILINE)


class Gauge(Protocol):
    """Measures one call at a time."""

    def begin(self, *, first: bool = False) -> None:
        """A call begins, perhaps the `first` of its kind."""

    def peak(self) -> int | None:
        """Bytes that it took at its peak besides what was held before it, or None if that is not known."""

    def resident(self) -> int | None:
        """Bytes of the process in the device's memory, where `trim` could make them less; else None."""


class NoGauge:
    """Measures nothing."""

    def begin(self, *, first: bool = False) -> None:
        """Do nothing."""

    def peak(self) -> int | None:
        """Not known."""
        return None

    def resident(self) -> int | None:
        """Not known."""
        return None


class ResidentGauge:
    """Linux: the high-water mark of resident memory."""

    def __init__(self) -> None:
        self._before = 0

    def begin(self, *, first: bool = False) -> None:
        """Reset the mark, and note where it stands."""
        if first:
            trim()
        _write(_CLEAR, _RESET_PEAK)
        self._before = _read(_NOW)

    def peak(self) -> int | None:
        """How far above that it rose."""
        return max(0, _read(_HIGH) - self._before)

    def resident(self) -> int | None:
        """Bytes of the process that are in memory."""
        descriptor = os.open(_PAGES, os.O_RDONLY)
        try:
            return int(os.read(descriptor, 128).split()[1]) * _PAGE_BYTES
        finally:
            os.close(descriptor)


class CudaGauge:
    """CUDA: torch's allocator keeps count."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = 0

    def begin(self, *, first: bool = False) -> None:
        """Reset the peak, and note what is allocated; nothing is, as long as torch is not loaded."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = int(torch.cuda.memory_allocated(self._device))

    def peak(self) -> int | None:
        """How far above that it rose."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return None
        return max(0, int(torch.cuda.max_memory_allocated(self._device)) - self._before)

    def resident(self) -> int | None:
        """Not told: torch's allocator returns by itself what it keeps, when it finds no room."""
        return None


def gauge_for(device: str) -> Gauge:
    """The gauge for a device."""
    if device.startswith("cuda"):
        return CudaGauge(device)
    return ResidentGauge() if _may_reset() else NoGauge()


def trim() -> None:
    """Let the C library return to the system what was freed, where it can."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device, or None if the system does not tell; on Linux within the cgroup's limit."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if not Path("/proc/meminfo").exists():
        return None
    match = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(match[1]) << 10 if match else None
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    return max(0, limit - used) if free is None else min(free, max(0, limit - used))


def _number(file: Path) -> int | None:
    """The number in a file of the control group; it says ``max`` where there is no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _may_reset() -> bool:
    try:
        _write(_CLEAR, _RESET_PEAK)
        return _read(_HIGH) > 0
    except OSError:
        return False


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _read(what: re.Pattern[bytes]) -> int:
    """Bytes in a line of the process's status."""
    descriptor = os.open(_STATUS, os.O_RDONLY)
    try:
        match = what.search(os.read(descriptor, 8192))
    finally:
        os.close(descriptor)
    return int(match[1]) << 10 if match else 0
