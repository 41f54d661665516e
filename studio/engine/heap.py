"""The heap: memory that was freed and not returned to the system, kept within the budget.

The C library keeps freed memory for later. That is as much out of others' reach as what is held, so before a call that
would not fit beside it, it is asked to return it. What is resident besides the ledger right after the first model was
loaded (Python, torch, libraries) is outside of the budget; what this has `grown` by since then (machine code that torch
makes and keeps, holes between small objects) is inside. This module knows nothing of requests.

Try it: ``pytest tests/studio/engine/test_heap.py``
"""

from __future__ import annotations

from collections.abc import Callable

from studio.devices.memory import Gauge, trim
from studio.engine.ledger import Ledger

_LEAST = 4 << 20  # bytes; less is not worth the milliseconds
_READ_EVERY = 64  # calls; a call whose peak is not known yet may have taken anything


class Heap:
    """Watches what is resident besides the ledger. `grown`: how much of that has come since the start and stays, in
    bytes, as of the last time that memory was returned.
    """

    def __init__(self, ledger: Ledger, gauge: Gauge, trim: Callable[[], None] = trim) -> None:
        self.grown = 0
        self._ledger, self._gauge, self._trim = ledger, gauge, trim
        self._outside: int | None = None
        self._most = self._used = 0  # what may be inside by now; what the ledger held at the last reading
        self._unread = _READ_EVERY

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
            self._outside = resident - used
        if resident - self._outside + peak > budget and resident - self._outside - used - self.grown > _LEAST:
            self._trim()
            resident = self._gauge.resident() or 0
            self.grown = max(0, resident - used - self._outside)
        self._most, self._used, self._unread = resident - self._outside + peak, used, 0
