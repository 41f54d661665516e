"""Threads: how many torch computes with on a CPU, chosen for each kind of step by measuring.

More threads are not always faster: a step of little tensors gains nothing, and beside another busy process each
operator waits for the thread that was put aside (a matrix-vector product took 325 ms with two threads, 40 with one).
What is tried is half and twice the count that stands. A trial is a step made once more with another count, whose states
are thrown away: steps leave their states as they were, so nobody notices. A kind of step that was never tried is tried
at once, and begins with the count that the last change came to, or with one where other work keeps the cores busy;
after that, trials take a five-hundredth of the time of the steps, and one more when steps have become twice as
slow as they were.

A request keeps the count that it began with, unless another is twice as fast: where a kernel rounds differently by
threads (on the processors tried: not in bfloat16), its recipe can say with how many it was made. This module knows
nothing of the loop.

Try it: ``studio doctor``, and look for rows with different threads
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from studio.caching import cached_property
from studio.devices import torch_setup
from studio.engine.cost.profile import Group, Measured, unthreaded

GAIN = 1.15  # another count must be this much faster
MUCH = 2.0  # times as fast: worth a change in the middle of a request
SHARE = 0.002  # of the time of the steps goes into trials
SLOWER = 2.0  # steps that take this much longer than they did are worth a trial at once
_EVERY = 16  # steps between two trials for being slow
_KEPT = 5  # latest seconds of a count; their median counts
_ENOUGH = 2


@dataclass
class _Kind:
    """Steps that are alike but for their threads."""

    now: int
    seconds: dict[tuple[int, int], deque[float]] = field(default_factory=dict)  # by threads and width
    best: dict[tuple[int, int], float] = field(default_factory=dict)
    purse: float = 0.0
    since: int = 0  # steps since the last trial
    known: bool = False  # another count was tried before


class Threads:
    """The counts that stand. Unless `free`, torch's own count is left as it is. `crowded` says whether other work keeps
    the cores busy: then kinds of steps begin with one thread.
    """

    def __init__(self, measured: Measured, *, free: bool = False, crowded: Callable[[], bool] | None = None) -> None:
        self.measured, self.free, self.crowded = measured, free, crowded or torch_setup.crowded
        self._latest: int | None = None  # the count that the last change of any kind came to
        self._kinds: dict[Group, _Kind] = {}
        self._usual: int | None = None  # asking torch at every step would cost 10 µs

    @cached_property
    def most(self) -> int:
        """What torch would use by itself; asked when torch is loaded."""
        return torch_setup.usual_threads() or 1

    @property
    def usual(self) -> int | None:
        """What calls take that chose no count of their own; None leaves torch as it is."""
        if self._usual is None and self.free and torch_setup.threads() is not None:
            self._usual = self.most
        return self._usual

    def standing(self, group: Group) -> int | None:
        """How many a request whose steps are of this kind should take; None where there is nothing to choose."""
        return self._kind(group).now if self.free and self.most > 1 else None

    def stepped(self, group: Group, width: int, seconds: float) -> None:
        """A step was made with `group.threads`."""
        if not self.free or group.threads is None or self.most == 1:
            return
        kind = self._kind(group)
        kind.purse += SHARE * seconds
        kind.since += 1
        self._learn(kind, group.threads, width, seconds)

    def due(self, group: Group, width: int) -> int | None:
        """The count to try with the step just made, or None."""
        threads = group.threads
        if not threads:
            return None
        kind = self._kind(group)
        own = _median(kind.seconds.get((threads, width), ()))
        if own is None:
            return None
        slow = kind.purse >= 0 and kind.since >= _EVERY and own > SLOWER * kind.best[threads, width]
        kept = len(kind.seconds[threads, width])
        new = kind.purse >= 0 and not kind.known and kept > _ENOUGH  # the first step of a process is a slow one
        others = [each for each in (threads // 2, threads * 2) if 1 <= each <= self.most]
        least = min(others, key=lambda each: len(kind.seconds.get((each, width), ())))
        cost = _median(kind.seconds.get((least, width), ())) or 2 * own
        if slow or new or kind.purse >= cost:
            return least
        return None

    def better(self, group: Group, width: int) -> int | None:
        """The count that stands, where it is so much faster than the group's that a running request should change."""
        kind = self._kind(group)
        own = _median(kind.seconds.get((group.threads or 0, width), ()))
        other = _median(kind.seconds.get((kind.now, width), ()))
        return kind.now if own is not None and other is not None and other * MUCH < own else None

    def give_up(self, group: Group) -> None:
        """A trial failed: no more of this kind."""
        self._kind(group).purse = -math.inf

    def tried(self, group: Group, threads: int, width: int, seconds: float) -> None:
        """The step was made once more with `threads`."""
        kind = self._kind(group)
        kind.purse = max(0.0, kind.purse - seconds)
        kind.since = 0
        self._learn(kind, threads, width, seconds)
        self.measured.learn(group._replace(threads=threads), width, seconds, None)
        kind.known = kind.known or len(kind.seconds[threads, width]) >= _ENOUGH
        counts = {at for at, by in kind.seconds if by == width and len(kind.seconds[at, by]) >= _ENOUGH}
        medians = {at: _median(kind.seconds[at, width]) or 0.0 for at in counts}
        if kind.now in medians:
            best = min(medians, key=lambda at: (medians[at], at))
            if medians[best] * GAIN < medians[kind.now]:
                kind.now = self._latest = best

    def _learn(self, kind: _Kind, threads: int, width: int, seconds: float) -> None:
        kept = kind.seconds.setdefault((threads, width), deque(maxlen=_KEPT))
        kept.append(seconds)
        median = _median(kept)
        if median is not None and len(kept) >= _ENOUGH:
            kind.best[threads, width] = min(median, kind.best.get((threads, width), median))
        kind.best.setdefault((threads, width), seconds)

    def _kind(self, group: Group) -> _Kind:
        bare = unthreaded(group)
        kind = self._kinds.get(bare)
        if kind is None:
            tables = {count: self.measured.seconds(bare._replace(threads=count)) for count in self._counts()}
            tried = sum(bool(table) for table in tables.values()) > 1
            if self.most > 1 and self.crowded():
                kind = self._kinds[bare] = _Kind(1)
            else:
                kind = self._kinds[bare] = _Kind(self._remembered(tables), known=tried)
            for count, table in tables.items():
                kind.best.update({(count, width): seconds for width, seconds in table.items()})
        return kind

    def _remembered(self, tables: Mapping[int, Mapping[int, float]]) -> int:
        """The count that was fastest by what other processes left, at the widest that all were measured at."""
        widths = [set(table) for table in tables.values() if table]
        shared = set.intersection(*widths) if len(widths) > 1 else set()
        if not shared or not tables[self.most]:
            return min(self._latest or self.most, self.most)
        width = max(shared)
        best = min((count for count in tables if tables[count]), key=lambda count: tables[count][width])
        return best if tables[best][width] * GAIN < tables[self.most][width] else self.most

    def _counts(self) -> Iterable[int]:
        count = self.most
        while count >= 1:
            yield count
            count //= 2


def _median(values: Iterable[float]) -> float | None:
    kept = sorted(values)
    return kept[len(kept) // 2] if kept else None
