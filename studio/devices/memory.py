"""Memory probes: the peak memory of a call, and the free memory of the host.

On Linux the peak is the kernel's high-water mark of the process's resident memory, reset before each call (about 25
µs). It includes everything, also scratch memory of libraries and other threads, in whole pages. Memory that the
allocator has cached from earlier calls is not counted again; so the allocator is trimmed before the first call of a
kind, and the highest of several readings is used. The probe for CUDA is in `cuda`. Other systems are not measured.

Try it: ``python -c "from studio.devices.memory import *; print(host_free_memory())"``
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Protocol

_CLEAR, _STATUS = "/proc/self/clear_refs", "/proc/self/status"
_RESET_PEAK = b"5"  # proc(5): resets the peak resident set size
_MMAP_THRESHOLD = -3  # mallopt(3)
_HIGH = re.compile(rb"^VmHWM:\s*(\d+) kB", re.MULTILINE)
_NOW = re.compile(rb"^VmRSS:\s*(\d+) kB", re.MULTILINE)


class MemoryProbe(Protocol):
    """Measures the memory of one call at a time."""

    def begin(self, *, first: bool = False) -> None:
        """A call starts; `first` says whether it is the first of its kind."""

    def peak(self) -> int | None:
        """Peak bytes of the call above what was in use before, or None if unknown."""

    def resident(self) -> int | None:
        """Bytes of the process in device memory, including freed memory that `trim` returns, or None if unknown.

        Pages of mapped files do not count: the system takes them back when it needs memory.
        """

    def recorded(self) -> int:
        """Bytes that recordings (`Device.record`, CUDA graphs) reserve, besides live tensors."""


class NoMemoryProbe:
    """Measures nothing."""

    def begin(self, *, first: bool = False) -> None:
        """Do nothing."""

    def peak(self) -> int | None:
        """Unknown."""
        return None

    def resident(self) -> int | None:
        """Unknown."""
        return None

    def recorded(self) -> int:
        """None."""
        return 0


class ResidentMemoryProbe(NoMemoryProbe):
    """Linux: the high-water mark of resident memory."""

    def __init__(self) -> None:
        self._before = 0

    def begin(self, *, first: bool = False) -> None:
        """Reset the mark, and read it."""
        if first:
            trim()
        _write(_CLEAR, _RESET_PEAK)
        self._before = _read(_NOW)

    def peak(self) -> int | None:
        """How far the mark has risen, in bytes."""
        return max(0, _read(_HIGH) - self._before)

    def resident(self) -> int | None:
        """Resident bytes of the process, without those of mapped files."""
        import psutil

        found = psutil.Process().memory_info()
        return int(found.rss - found.shared)


def trim() -> None:
    """Return freed memory of the C library to the system (`malloc_trim`), where supported."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def map_large_blocks() -> None:
    """Let the C library map each block of 1 MiB or more by itself, where supported: freed ones return to the system at
    once. By default it learns to keep blocks of up to 32 MiB, which trimming returns only where all around is free.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, 1 << 20)


def host_free_memory() -> int:
    """Available host memory in bytes; on Linux within the cgroup's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _number(file: Path) -> int | None:
    """The number in a cgroup file; ``max`` means no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def may_reset() -> bool:
    """Whether this system can reset the high-water mark."""
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
    """The bytes in a line of /proc/self/status."""
    descriptor = os.open(_STATUS, os.O_RDONLY)
    try:
        match = what.search(os.read(descriptor, 8192))
    finally:
        os.close(descriptor)
    return int(match[1]) << 10 if match else 0
