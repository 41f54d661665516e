"""Eviction policy: which models are evicted from a device when memory is needed. Pure.

The cost of evicting a model is the time to load or restore it, in seconds, divided by the seconds since its last use:
models that return quickly and have been idle for long are evicted first. Models that no request uses are evicted before
models of other requests, and no model is evicted unnecessarily.

Try it: ``pytest tests/studio/engine/memory/test_eviction.py``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """What may be evicted: `size` in bytes; `rank` 0 if no request uses it, higher if it is needed more."""

    what: T
    size: int
    rank: int
    idle_s: float
    return_s: float

    @property
    def worth(self) -> tuple[int, float]:
        """The sort key; the lowest is evicted first."""
        return self.rank, self.return_s / max(self.idle_s, 1e-6)


def choose_victims(candidates: Sequence[Candidate[T]], need: float) -> list[T] | None:
    """Return what to evict to free `need` bytes; None if evicting everything would not free enough."""
    if sum(each.size for each in candidates) < need:
        return None
    leaving: list[Candidate[T]] = []
    freed = 0.0
    for each in sorted(candidates, key=lambda each: each.worth):
        if freed >= need:
            break
        leaving.append(each)
        freed += each.size
    for each in reversed(leaving):  # keep candidates, the most valuable first, if the others free enough
        if freed - each.size >= need:
            leaving.remove(each)
            freed -= each.size
    return [each.what for each in leaving]
