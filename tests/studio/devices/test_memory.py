"""What the system says of its memory, and of this process."""

from __future__ import annotations

import mmap
import sys

import pytest

from studio.devices.cpu import Cpu
from studio.devices.memory import ResidentMemoryProbe, host_free_memory


def test_free_memory_is_a_part_of_the_machines() -> None:
    total = Cpu("cpu").total_memory()
    assert total is not None
    assert 64 << 20 < host_free_memory() <= total


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_the_peak_of_a_call_and_what_stays_of_it() -> None:
    probe = ResidentMemoryProbe()
    probe.begin(first=True)
    before = probe.resident()
    with mmap.mmap(
        -1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ) as held:  # the C library may keep what it allocated
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 1
        assert before is not None
        assert abs((probe.resident() or 0) - before - len(held)) < 8 << 20
    assert 56 << 20 < (probe.peak() or 0) < 96 << 20
    assert (probe.resident() or 0) - before < 8 << 20
