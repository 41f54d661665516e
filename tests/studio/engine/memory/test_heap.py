"""What was freed is returned when it would be over the budget, and never for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from studio.devices.memory import NoMemoryProbe
from studio.engine.memory.heap import Heap
from studio.engine.memory.ledger import Ledger

MIB = 1 << 20


class Process(NoMemoryProbe):
    """A process's memory as four numbers: what is outside of the budget, what grew, what is held, what was freed."""

    def __init__(self, ledger: Ledger, outside: int) -> None:
        self.ledger, self.outside, self.untracked, self.freed, self.trims = ledger, outside, 0, 0, 0
        self.kept = 0  # by recordings

    def resident(self) -> int:
        return self.outside + self.untracked + self.ledger.used + self.freed

    def recorded(self) -> int:
        return self.kept

    def trim(self) -> None:
        self.freed, self.trims = 0, self.trims + 1


def begun(budget: int | None, outside: int = 400 * MIB) -> tuple[Ledger, Process, Heap]:
    ledger = Ledger(budget)
    process = Process(ledger, outside)
    heap = Heap(ledger, process, process.trim)
    heap.trim_for(0)
    return ledger, process, heap


TURNS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 100), st.integers(0, 100), st.integers(0, 10), st.booleans()).map(
        lambda turn: (*(each * MIB for each in turn[:4]), turn[4])
    ),
    max_size=40,
)


@given(TURNS)
def test_what_was_freed_keeps_no_call_from_the_budget(turns: list[tuple[int, int, int, int, bool]]) -> None:
    """Calls that leave something held, freed or grown, no more than their peak; now and then all that is held goes."""
    budget = 300 * MIB
    ledger, process, heap = begun(budget)
    for peak, held, freed, grew, released in turns:
        before, fits = process.trims, process.resident() + peak - process.outside <= budget
        heap.trim_for(peak)
        assert not fits or process.trims == before, "there was room"
        over = process.resident() + peak - process.outside - budget
        assert over <= max(0, ledger.used + process.untracked + peak - budget) + 4 * MIB
        assert heap.untracked <= process.untracked
        left = peak
        for name, size in (("held", held), ("freed", freed), ("untracked", grew)):
            size = min(size, left)
            left -= size
            if name == "held":
                ledger.hold("x", ledger.held("x") + size)
            else:
                setattr(process, name, getattr(process, name) + size)
        if released:
            process.freed += ledger.held("x")
            ledger.release("x")


def test_nothing_is_asked_without_a_budget() -> None:
    _, process, heap = begun(None)
    process.freed = 1000 * MIB
    heap.trim_for(1000 * MIB)
    assert process.trims == 0
    assert heap.untracked == 0


def test_what_grew_is_known_after_a_return_and_may_shrink() -> None:
    _, process, heap = begun(100 * MIB)
    process.untracked, process.freed = 30 * MIB, 90 * MIB
    heap.trim_for(110 * MIB)
    assert (process.trims, heap.untracked) == (1, 30 * MIB)
    heap.trim_for(110 * MIB)
    assert process.trims == 1, "nothing was freed since"
    process.untracked, process.freed = 10 * MIB, 120 * MIB
    heap.trim_for(110 * MIB)
    assert (process.trims, heap.untracked) == (2, 10 * MIB)


def test_what_is_no_longer_resident_is_forgotten_without_a_return() -> None:
    _, process, heap = begun(100 * MIB)
    process.untracked, process.freed = 30 * MIB, 90 * MIB
    heap.trim_for(110 * MIB)
    process.untracked = 10 * MIB
    heap.trim_for(110 * MIB)
    assert (process.trims, heap.untracked) == (1, 10 * MIB)


def test_what_recordings_keep_counts_as_grown_while_they_do() -> None:
    _, process, heap = begun(100 * MIB)
    process.kept = 30 * MIB
    assert heap.untracked == 30 * MIB
    process.untracked = 20 * MIB
    heap.trim_for(110 * MIB)
    assert heap.untracked == 50 * MIB
    process.kept = 0
    assert heap.untracked == 20 * MIB


def test_a_streamed_model_that_is_not_all_there_leaves_no_growth_behind() -> None:
    """The ledger holds what will come; the process has less."""
    ledger, process = Ledger(100 * MIB), Process(Ledger(), 0)
    ledger.hold("model", 60 * MIB)
    process.untracked = 20 * MIB
    heap = Heap(ledger, process, process.trim)
    heap.trim_for(0)
    ledger.release("model")
    process.untracked, process.freed = 0, 150 * MIB
    heap.trim_for(110 * MIB)
    assert (process.trims, heap.untracked) == (1, 0)


def test_calls_whose_peak_is_not_known_are_found_out() -> None:
    _, process, heap = begun(100 * MIB)
    process.freed = 200 * MIB
    for _ in range(64):
        heap.trim_for(0)
    assert process.trims == 1


@given(TURNS)
def test_what_is_beyond_the_ledger_is_known_after_each_reading(turns: list[tuple[int, int, int, int, bool]]) -> None:
    """While layers take all that is free: the growth, and no more than is not worth a trim of what was freed."""
    budget = 300 * MIB
    ledger, process, heap = begun(budget)
    heap.trim_for(budget)  # the call that leaves behind what the first turn has
    for _, held, freed, grew, _ in turns:
        ledger.hold("x", held)
        process.freed, process.untracked = process.freed + freed, process.untracked + grew
        heap.trim_for(budget - ledger.used)
        assert heap.beyond == process.untracked + process.freed
        assert process.freed <= 4 * MIB
