"""Untracked memory: what the process uses although the ledger does not hold it, kept within the budget.

On a CPU the C library keeps freed memory (malloc) for later. Before a call that would not fit, `malloc_trim` returns
it. While a model is streamed, its layers take all that a call leaves free: then memory is trimmed before each call, and
large blocks are mapped one by one, so that they return to the system when they are freed.

Memory that was resident when the first model was loaded (Python, torch, libraries) is outside the budget; what has
grown since (kernels that torch compiles and caches, fragmentation) counts as `untracked`, inside the budget.

The CUDA allocator reuses freed memory for the next call, or returns it to the driver when it runs out, so only live
tensors count there. Recorded CUDA graphs reserve the memory that they write to, freed or not: that counts as untracked.

Try it: ``pytest tests/studio/engine/memory/test_heap.py``
"""

from __future__ import annotations

from collections.abc import Callable

from studio.devices.memory import MemoryProbe, trim
from studio.engine.memory.ledger import Ledger

_LEAST = 4 << 20  # bytes; trimming less is not worth the milliseconds
_READ_EVERY = 64  # calls; a call whose peak is unknown may have used any amount


class Heap:
    """Tracks resident memory that is not in the ledger."""

    def __init__(self, ledger: Ledger, probe: MemoryProbe, trim: Callable[[], None] = trim) -> None:
        self._ledger, self._probe, self._trim = ledger, probe, trim
        self._outside: int | None = None
        self._untracked = self._beyond = 0
        self._most = self._used = 0  # what may be inside by now; what the ledger held at the last reading
        self._unread = _READ_EVERY

    @property
    def untracked(self) -> int:
        """Bytes in use that the ledger does not hold, as of the last trim, plus those reserved by CUDA graphs now."""
        return self._untracked + self._probe.recorded()

    @property
    def beyond(self) -> int:
        """The same as of the last reading, with what was freed since the last trim."""
        return self._beyond + self._probe.recorded()

    def trim_for(self, peak: int) -> None:
        """Return freed memory to the system if a call with this peak, in bytes, would not fit into the budget.

        Resident memory is read (30 µs) only if it may be too much: a call leaves at most its peak behind.
        """
        budget, used = self._ledger.budget, self._ledger.used
        if budget is None:
            return
        self._most += peak
        self._unread += 1
        if self._most <= budget and used <= self._used and self._unread < _READ_EVERY:
            return
        resident = self._probe.resident()
        if resident is None:
            return
        if self._outside is None:
            self._outside = max(0, resident - used)  # less is there, where a model is streamed
        self._untracked = min(self._untracked, max(0, resident - used - self._outside))
        if resident - self._outside + peak > budget and resident - self._outside - used - self._untracked > _LEAST:
            self._trim()
            resident = self._probe.resident() or 0
            self._untracked = max(0, resident - used - self._outside)
        self._beyond = max(0, resident - used - self._outside)
        self._most, self._used, self._unread = resident - self._outside + peak, used, 0
