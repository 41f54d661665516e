"""CPU threads: how many torch uses, tuned by measurement for each kind of step.

More threads are not always faster: a step with small tensors gains nothing, and next to another busy process each
operator waits for threads that lost their core (a matrix-vector product took 325 ms with two threads, 40 with one).
Half and twice the current number are tried. A trial runs a step again with another number and discards the result,
which is safe because steps do not mutate their states. A kind of step that was never tried is tried at once, from the
number that the last change chose, or with one thread on a busy machine; after that, trials use 0.2% of step time, plus
one trial when steps have become twice as slow.

A request keeps its number of threads unless another is twice as fast, because some kernels round differently with
another number (on the processors tried: not in bfloat16), and the recipe records the number.

Try it: ``studio doctor``, and look for rows with different threads
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from studio.caching import cached_property
from studio.devices import torch_setup
from studio.engine.cost.profile import Group, Profile, unthreaded

GAIN = 1.15  # another number must be faster by this factor
MUCH = 2.0  # factor that is worth a change in the middle of a request
SHARE = 0.002  # fraction of step time that trials may use
SLOWER = 2.0  # a slowdown by this factor triggers a trial at once
_EVERY = 16  # steps between two trials because of a slowdown
_KEPT = 5  # latest times of a number of threads; their median is used
_ENOUGH = 2


@dataclass
class _Kind:
    """Steps of one group, whatever their threads."""

    now: int
    seconds: dict[tuple[int, int], deque[float]] = field(default_factory=dict)  # by threads and batch size
    best: dict[tuple[int, int], float] = field(default_factory=dict)
    budget: float = 0.0
    since: int = 0  # steps since the last trial
    known: bool = False  # another number was tried before


class ThreadTuner:
    """The chosen numbers of threads. Unless `free`, torch's default is used. `crowded` says whether other processes
    keep the cores busy: then steps start with one thread.
    """

    def __init__(self, profile: Profile, *, free: bool = False, crowded: Callable[[], bool] | None = None) -> None:
        self.profile, self.free, self.crowded = profile, free, crowded or torch_setup.crowded
        self._latest: int | None = None  # the number that the last change chose, of any kind of step
        self._kinds: dict[Group, _Kind] = {}
        self._usual: int | None = None  # asking torch at every step would cost 10 µs

    @cached_property
    def most(self) -> int:
        """torch's default; read when torch is loaded."""
        return torch_setup.usual_threads() or 1

    @property
    def usual(self) -> int | None:
        """The number for calls without a number of their own; None leaves torch unchanged."""
        if self._usual is None and self.free and torch_setup.threads() is not None:
            self._usual = self.most
        return self._usual

    def standing(self, group: Group) -> int | None:
        """The number for a request with steps of this kind; None if there is no choice."""
        return self._kind(group).now if self.free and self.most > 1 else None

    def stepped(self, group: Group, width: int, seconds: float) -> None:
        """Record a step with `group.threads`."""
        if not self.free or group.threads is None or self.most == 1:
            return
        kind = self._kind(group)
        kind.budget += SHARE * seconds
        kind.since += 1
        self._learn(kind, group.threads, width, seconds)

    def due(self, group: Group, width: int) -> int | None:
        """The number to try with the last step, or None."""
        threads = group.threads
        if not threads:
            return None
        kind = self._kind(group)
        own = _median(kind.seconds.get((threads, width), ()))
        if own is None:
            return None
        slow = kind.budget >= 0 and kind.since >= _EVERY and own > SLOWER * kind.best[threads, width]
        kept = len(kind.seconds[threads, width])
        new = kind.budget >= 0 and not kind.known and kept > _ENOUGH  # the first step of a process is slow
        others = [each for each in (threads // 2, threads * 2) if 1 <= each <= self.most]
        least = min(others, key=lambda each: len(kind.seconds.get((each, width), ())))
        cost = _median(kind.seconds.get((least, width), ())) or 2 * own
        if slow or new or kind.budget >= cost:
            return least
        return None

    def better(self, group: Group, width: int) -> int | None:
        """The chosen number, if it is so much faster than the group's that a running request should change."""
        kind = self._kind(group)
        own = _median(kind.seconds.get((group.threads or 0, width), ()))
        other = _median(kind.seconds.get((kind.now, width), ()))
        return kind.now if own is not None and other is not None and other * MUCH < own else None

    def give_up(self, group: Group) -> None:
        """A trial failed: make no more for this kind of step."""
        self._kind(group).budget = -math.inf

    def tried(self, group: Group, threads: int, width: int, seconds: float) -> None:
        """Record a trial with `threads`."""
        kind = self._kind(group)
        kind.budget = max(0.0, kind.budget - seconds)
        kind.since = 0
        self._learn(kind, threads, width, seconds)
        self.profile.record(group._replace(threads=threads), width, seconds, None)
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
            tables = {count: self.profile.seconds(bare._replace(threads=count)) for count in self._counts()}
            tried = sum(bool(table) for table in tables.values()) > 1
            if self.most > 1 and self.crowded():
                kind = self._kinds[bare] = _Kind(1)
            else:
                kind = self._kinds[bare] = _Kind(self._remembered(tables), known=tried)
            for count, table in tables.items():
                kind.best.update({(count, width): seconds for width, seconds in table.items()})
        return kind

    def _remembered(self, tables: Mapping[int, Mapping[int, float]]) -> int:
        """The fastest number by measurements of other processes, at the largest batch size that all have."""
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
