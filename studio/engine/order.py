"""Order: which request is served next. Pure; knows nothing of generators, memory or batches.

Two levels of start-time fair queueing (Goyal, Vin and Cheng, 1996): between the classes, then between a class's
clients. Whoever has the least virtual time is next, and pays for service with the device seconds it took. A newcomer
starts at the virtual time of the one served last, so being idle earns no credit, and a debt is not forgotten. A second
of the background class costs as much as 15 interactive ones, so background work gives way but never starves: it has at
least 1/16 of the device. A client's own requests take turns: the one served longest ago is next.

Try it: ``pytest tests/studio/engine/test_order.py``
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from enum import Enum
from itertools import count
from typing import Generic, Protocol, TypeVar

BACKGROUND_SHARE = 1 / 16
_FORGET = 256  # accounts of idle clients are looked through when there are more than this


class Job(Protocol):
    """What is put in order."""

    @property
    def client(self) -> str:
        """On whose behalf."""

    @property
    def background(self) -> bool:
        """Whether it gives way to those that are not."""


J = TypeVar("J", bound=Job)


class Work(Enum):
    """What a job is due for."""

    FINISH = "finish"
    ADMIT = "admit"
    STEP = "step"


_FINISH, _ADMIT, _STEP = Work.FINISH, Work.ADMIT, Work.STEP  # Python 3.11 looks members up by a call


class _Class(Generic[J]):
    """The clients of one class."""

    def __init__(self, price: float, most: int) -> None:
        self.price, self.most = price, most
        self.time = 0.0  # of the class
        self.blocked = False  # no admissions until something is released
        self.done: deque[J] = deque()
        self.waiting: dict[str, OrderedDict[J, None]] = {}
        self.running: dict[str, OrderedDict[J, None]] = {}
        self._times: dict[str, float] = {}
        self._now = 0.0
        self._admissions: list[tuple[float, int, str]] = []  # heaps; what is out of date is dropped when it surfaces
        self._steps: list[tuple[float, int, str]] = []
        self._serial = count()

    def accept(self, job: J, *, first: bool = False) -> None:
        client = job.client
        if client not in self.waiting and client not in self.running:
            if len(self._times) > _FORGET:
                self._forget()
            self._times[client] = max(self._times.get(client, 0.0), self._now)
        queue = self.waiting.setdefault(client, OrderedDict())
        queue[job] = None
        if first:
            queue.move_to_end(job, last=False)
        if len(queue) == 1:
            self._push(client)

    def admit(self, job: J) -> None:
        self._drop(self.waiting, job)
        self.running.setdefault(job.client, OrderedDict())[job] = None
        self._push(job.client)

    def remove(self, job: J) -> None:
        if job in self.done:
            self.done.remove(job)
        self._drop(self.waiting, job)
        self._drop(self.running, job)
        self._push(job.client)

    def finish(self, job: J) -> None:
        self._drop(self.running, job)
        self.done.append(job)
        self._push(job.client)

    def charge(self, job: J, seconds: float) -> None:
        """Let the job's client pay, and put the job behind the client's others."""
        queue = self.running.get(job.client)
        if queue is not None and job in queue:
            queue.move_to_end(job)
        if seconds > 0:
            self._times[job.client] = self._times.get(job.client, self._now) + seconds
            self._push(job.client)

    def next(self) -> tuple[Work, J] | None:
        """The job that is due, and for what."""
        if self.done:
            return _FINISH, self.done[0]
        admit = None if self.blocked else self._first(self._admissions, self.waiting)
        step = self._first(self._steps, self.running)
        if admit is not None and (step is None or self._times[admit] <= self._times[step]):
            self._now = max(self._now, self._times[admit])
            return _ADMIT, next(iter(self.waiting[admit]))
        if step is not None:
            self._now = max(self._now, self._times[step])
            return _STEP, next(iter(self.running[step]))
        return None

    def _push(self, client: str) -> None:
        if client in self.waiting:
            heapq.heappush(self._admissions, (self._times[client], next(self._serial), client))
        if client in self.running:
            heapq.heappush(self._steps, (self._times[client], next(self._serial), client))

    def _first(self, heap: list[tuple[float, int, str]], table: dict[str, OrderedDict[J, None]]) -> str | None:
        while heap:
            time, _, client = heap[0]
            full = table is self.waiting and len(self.running.get(client, ())) >= self.most
            if client in table and self._times[client] == time and not full:
                return client
            heapq.heappop(heap)
        return None

    def _drop(self, table: dict[str, OrderedDict[J, None]], job: J) -> None:
        queue = table.get(job.client)
        if queue is not None and queue.pop(job, job) is None and not queue:
            del table[job.client]

    def _forget(self) -> None:
        """Drop the accounts of idle clients that owe nothing."""
        self._times = {
            client: time
            for client, time in self._times.items()
            if client in self.waiting or client in self.running or time > self._now
        }


def _busy(each: _Class[J]) -> bool:
    return bool(each.done or each.running or each.waiting)


class Order(Generic[J]):
    """Jobs accepted and not ended. At most `most` of a client's jobs in a class run at once."""

    def __init__(self, most: int) -> None:
        self._classes = (_Class[J](1.0, most), _Class[J](1 / BACKGROUND_SHARE - 1, most))
        self._parked: OrderedDict[J, None] = OrderedDict()
        self._now = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def jobs(self) -> list[J]:
        """All of them: those waiting, running, parked and done."""
        found: list[J] = list(self._parked)
        for each in self._classes:
            for table in (each.running, each.waiting):
                found += [job for queue in table.values() for job in queue]
            found += each.done
        return found

    def waiting(self) -> list[J]:
        """Those that wait to be admitted."""
        return [job for each in self._classes for queue in each.waiting.values() for job in queue]

    def accept(self, job: J) -> None:
        """Take a job in; it waits."""
        found = self._class(job)
        if not _busy(found):
            found.time = max(found.time, self._now)
        found.accept(job)
        self._length += 1

    def next(self) -> tuple[Work, J] | None:
        """The job that is due, and for what; None if nothing can be done."""
        interactive, background = self._classes
        for each in (background, interactive) if background.time < interactive.time else self._classes:
            due = each.next()
            if due is not None:
                self._now = max(self._now, each.time)
                return due
        return None

    def done(self, job: J) -> list[J]:
        """Those of the job's class that are due for their end, in order."""
        return list(self._class(job).done)

    def admitted(self, job: J) -> None:
        """The job was started: it runs."""
        self._class(job).admit(job)

    def served(self, job: J, seconds: float, *, done: bool = False) -> None:
        """Charge for service; a job that is `done` is due for its end."""
        found = self._class(job)
        found.time += seconds * found.price
        found.charge(job, seconds)
        if done:
            found.finish(job)

    def removed(self, job: J) -> None:
        """The job has ended: what it held is free, so others may be admitted and stepped."""
        if self._parked.pop(job, job) is not None:
            self._class(job).remove(job)
        self._length -= 1
        self.released()

    def block(self, job: J) -> None:
        """There is no room for this job: none of its class is admitted until something is released."""
        self._class(job).blocked = True

    def park(self, job: J) -> None:
        """There is no room for this running job's step: it stands aside until something is released."""
        self._class(job).remove(job)
        self._parked[job] = None

    @property
    def parked(self) -> list[J]:
        """Jobs that stand aside, the longest first."""
        return list(self._parked)

    def released(self) -> None:
        """Something was released: look again at who waits for room."""
        for each in self._classes:
            each.blocked = False
        parked, self._parked = self._parked, OrderedDict()
        for job in parked:
            self._class(job).accept(job, first=True)
            self._class(job).admit(job)

    def _class(self, job: J) -> _Class[J]:
        return self._classes[job.background]
