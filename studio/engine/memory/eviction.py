"""Residency: which models leave the device when room is needed. Pure; knows nothing of devices or files.

A model's worth is what it costs to bring back, in seconds, for each second since it was last used: what comes back
cheaply and has long been idle goes first. Models that nobody uses go before models that others' requests use, and none
goes that is not needed for the room.

Try it: ``pytest tests/studio/engine/test_residency.py``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """What might leave: `size` in bytes; `rank` 0 for one that nobody uses, higher for one that is missed more."""

    what: T
    size: int
    rank: int
    idle_s: float
    return_s: float

    @property
    def worth(self) -> tuple[int, float]:
        """The least leaves first."""
        return self.rank, self.return_s / max(self.idle_s, 1e-6)


def choose_victims(candidates: Sequence[Candidate[T]], need: float) -> list[T] | None:
    """Return what must leave so that `need` bytes come free; None if all of it would not do."""
    if sum(each.size for each in candidates) < need:
        return None
    leaving: list[Candidate[T]] = []
    freed = 0.0
    for each in sorted(candidates, key=lambda each: each.worth):
        if freed >= need:
            break
        leaving.append(each)
        freed += each.size
    for each in reversed(leaving):  # the last were worth most: spare those that the others make needless
        if freed - each.size >= need:
            leaving.remove(each)
            freed -= each.size
    return [each.what for each in leaving]
