"""The events of a running job, in memory, for any number of readers in threads and coroutines.

Their number is bounded: only the latest progress and the latest preview are kept, and old pieces of text are joined.

Try it: ``pytest tests/studio/jobs/test_feed.py``
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

from studio.engine import Event
from studio.engine.events import Delta
from studio.jobs.job import JobEvent
from studio.waking import future_and_waker

PER_ATTEMPT = 10**9  # events of one attempt are numbered from `attempt * PER_ATTEMPT`
_MOST_DELTAS = 1000
_LATEST = ("progress", "preview", "node")  # of these only the latest is kept (of each node)


class Feed:
    """The events of one attempt. `first` is the number of its first event."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._next = first
        self._guard = threading.Lock()
        self._news = threading.Condition(self._guard)
        self._events: dict[int, JobEvent | Event] = {}
        self._latest: dict[str, int] = {}
        self._deltas: list[int] = []
        self._wakers: list[Callable[[], None]] = []
        self._over = False

    def reserve(self) -> int:
        """The next number, for an event that is added when it is in the database too."""
        with self._guard:
            self._next += 1
            return self._next - 1

    def add(self, event: JobEvent | Event, name: str = "", number: int | None = None) -> None:
        """Add an event, with the next number or a reserved one. Of the same type and `name` only the latest is kept,
        if it tells of progress.
        """
        with self._news:
            if number is None:
                number = self._next
                self._next += 1
            self._events[number] = event
            if event.type in _LATEST:
                key = f"{event.type} {name}"
                self._events.pop(self._latest.pop(key, -1), None)
                self._latest[key] = number
            elif isinstance(event, Delta):
                self._deltas.append(number)
                if len(self._deltas) > _MOST_DELTAS:
                    self._join()
            self._wake()

    def close(self) -> None:
        """Nothing more will come: readers look into the database."""
        with self._news:
            self._over = True
            self._wake()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def after(self, number: int) -> list[JobEvent]:
        """The events with a higher number, in order."""
        with self._guard:
            found = [(at, each) for at, each in self._events.items() if at > number]
        return [_numbered(at, each) for at, each in sorted(found, key=lambda pair: pair[0])]

    def wait(self, number: int, seconds: float) -> None:
        """Wait until there is an event with a higher number, at most so long."""
        with self._news:
            self._news.wait_for(lambda: self._has(number), seconds)

    def wait_over(self, seconds: float) -> None:
        """Wait until nothing more will come, at most so long."""
        with self._news:
            self._news.wait_for(lambda: self._over, seconds)

    async def wait_async(self, number: int, seconds: float) -> None:
        """The same in a coroutine of any event loop."""
        future, waker = future_and_waker()
        with self._guard:
            if self._has(number):
                return
            self._wakers.append(waker)
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            with self._guard:
                if waker in self._wakers:
                    self._wakers.remove(waker)

    def _has(self, number: int) -> bool:
        return self._over or any(at > number for at in reversed(self._events))

    def _wake(self) -> None:
        self._news.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def _join(self) -> None:
        """Join the older half of the pieces of text into one event, with the number of the last."""
        old, self._deltas = self._deltas[: _MOST_DELTAS // 2], self._deltas[_MOST_DELTAS // 2 :]
        pieces = [each for number in old if isinstance(each := self._events.pop(number), Delta)]
        self._events[old[-1]] = Delta(pieces[0].start, "".join(each.text for each in pieces))
        self._deltas.insert(0, old[-1])


def _numbered(number: int, event: JobEvent | Event) -> JobEvent:
    if isinstance(event, JobEvent):
        return JobEvent(number, event.type, event.data)
    data = json.loads(event.to_json())
    del data["number"]
    return JobEvent(number, data.pop("type"), data)
