"""The heap: memory that is out of others' reach though the ledger does not hold it, kept within the budget.

On a CPU the C library keeps freed memory for later, so before a call that would not fit beside it, it is asked to
return it. What is resident besides the ledger right after the first model was loaded (Python, torch, libraries) is
outside of the budget; what this has `grown` by since then (machine code that torch makes and keeps, holes between small
objects) is inside.

CUDA's allocator gives what was freed to the next call, or back to the driver when it finds no room, so only what
tensors have there counts. Recordings (CUDA graphs) keep what they write to for themselves, also what was freed: that
counts as grown. This module knows nothing of requests.

Try it: ``pytest tests/studio/engine/test_heap.py``
"""

from __future__ import annotations

from collections.abc import Callable

from studio.devices.memory import Gauge, trim
from studio.engine.memory.ledger import Ledger

_LEAST = 4 << 20  # bytes; less is not worth the milliseconds
_READ_EVERY = 64  # calls; a call whose peak is not known yet may have taken anything


class Heap:
    """Watches what is resident besides the ledger."""

    def __init__(self, ledger: Ledger, gauge: Gauge, trim: Callable[[], None] = trim) -> None:
        self._ledger, self._gauge, self._trim = ledger, gauge, trim
        self._outside: int | None = None
        self._grown = 0
        self._most = self._used = 0  # what may be inside by now; what the ledger held at the last reading
        self._unread = _READ_EVERY

    @property
    def grown(self) -> int:
        """How much of it has come since the start and stays, in bytes: as of the last time that memory was returned,
        and what recordings keep now.
        """
        return self._grown + self._gauge.recorded()

    def make_room(self, peak: int) -> None:
        """Return what was freed, if a call that takes `peak` bytes would not fit into the budget beside it.

        Resident memory is read (30 µs) only where it may be too much: a call leaves no more than its peak behind.
        """
        budget, used = self._ledger.budget, self._ledger.used
        if budget is None:
            return
        self._most += peak
        self._unread += 1
        if self._most <= budget and used <= self._used and self._unread < _READ_EVERY:
            return
        resident = self._gauge.resident()
        if resident is None:
            return
        if self._outside is None:
            self._outside = max(0, resident - used)  # less is there, where a model is streamed
        self._grown = min(self._grown, max(0, resident - used - self._outside))
        if resident - self._outside + peak > budget and resident - self._outside - used - self._grown > _LEAST:
            self._trim()
            resident = self._gauge.resident() or 0
            self._grown = max(0, resident - used - self._outside)
        self._most, self._used, self._unread = resident - self._outside + peak, used, 0
