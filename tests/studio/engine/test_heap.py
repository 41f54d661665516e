"""What was freed is returned when it would be over the budget, and never for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from studio.engine.gauge import NoGauge
from studio.engine.heap import Heap
from studio.engine.ledger import Ledger

MIB = 1 << 20


class Process(NoGauge):
    """A process's memory as four numbers: what is outside of the budget, what grew, what is held, what was freed."""

    def __init__(self, ledger: Ledger, outside: int) -> None:
        self.ledger, self.outside, self.grown, self.freed, self.trims = ledger, outside, 0, 0, 0

    def resident(self) -> int:
        return self.outside + self.grown + self.ledger.used + self.freed

    def trim(self) -> None:
        self.freed, self.trims = 0, self.trims + 1


def begun(budget: int | None, outside: int = 400 * MIB) -> tuple[Ledger, Process, Heap]:
    ledger = Ledger(budget)
    process = Process(ledger, outside)
    heap = Heap(ledger, process, process.trim)
    heap.make_room(0)
    return ledger, process, heap


SIZES = st.integers(0, 200).map(lambda n: n * MIB)


@given(st.lists(st.tuples(SIZES, SIZES, st.integers(0, 20).map(lambda n: n * MIB), SIZES), max_size=20))
def test_a_call_that_fits_beside_what_is_held_and_grown_fits_beside_what_was_freed(
    turns: list[tuple[int, int, int, int]],
) -> None:
    budget = 300 * MIB
    ledger, process, heap = begun(budget)
    for held, freed, grew, peak in turns:
        ledger.hold("x", held)
        process.freed = max(process.freed, freed)
        process.grown += grew
        before, fitted = process.trims, process.resident() + peak - process.outside <= budget
        heap.make_room(peak)
        if fitted:
            assert process.trims == before, "there was room"
        over = process.resident() + peak - process.outside - budget
        assert over <= max(0, held + process.grown + peak - budget) + 4 * MIB
        assert heap.grown <= process.grown


def test_nothing_is_asked_without_a_budget() -> None:
    _, process, heap = begun(None)
    process.freed = 1000 * MIB
    heap.make_room(1000 * MIB)
    assert process.trims == 0
    assert heap.grown == 0


def test_what_grew_is_known_after_a_return_and_may_shrink() -> None:
    _, process, heap = begun(100 * MIB)
    process.grown, process.freed = 30 * MIB, 90 * MIB
    heap.make_room(0)
    assert (process.trims, heap.grown) == (1, 30 * MIB)
    heap.make_room(60 * MIB)
    assert process.trims == 1, "nothing was freed since"
    process.grown, process.freed = 10 * MIB, 120 * MIB
    heap.make_room(0)
    assert (process.trims, heap.grown) == (2, 10 * MIB)
