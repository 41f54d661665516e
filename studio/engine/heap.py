"""The heap: memory that was freed and not returned to the system, kept within the budget.

The C library keeps freed memory for later. That is as much out of others' reach as what is held, so before a call that
would not fit beside it, it is asked to return it. What is resident besides the ledger right after the first model was
loaded (Python, torch, libraries) is outside of the budget; what this has `grown` by since then (machine code that torch
makes and keeps, holes between small objects) is inside. This module knows nothing of requests.

Try it: ``pytest tests/studio/engine/test_heap.py``
"""

from __future__ import annotations

from collections.abc import Callable

from studio.engine.gauge import Gauge, trim
from studio.engine.ledger import Ledger

_LEAST = 4 << 20  # bytes; less is not worth the milliseconds


class Heap:
    """Watches what is resident besides the ledger. `grown`: how much of that has come since the start and stays, in
    bytes, as of the last time that memory was returned.
    """

    def __init__(self, ledger: Ledger, gauge: Gauge, trim: Callable[[], None] = trim) -> None:
        self.grown = 0
        self._ledger, self._gauge, self._trim = ledger, gauge, trim
        self._outside: int | None = None

    def make_room(self, peak: int) -> None:
        """Return what was freed, if a call that takes `peak` bytes would not fit into the budget beside it."""
        budget, used, resident = self._ledger.budget, self._ledger.used, self._gauge.resident()
        if budget is None or resident is None:
            return
        if self._outside is None:
            self._outside = resident - used
        freed = resident - used - self._outside - self.grown
        if freed > _LEAST and used + self.grown + freed + peak > budget:
            self._trim()
            self.grown = max(0, (self._gauge.resident() or 0) - used - self._outside)
