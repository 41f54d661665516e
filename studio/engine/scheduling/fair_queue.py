"""Fair queueing: which request runs next. Pure.

Two levels of start-time fair queueing (Goyal, Vin and Cheng, 1996): between the priority classes, then between the
clients of a class. The client with the least virtual time is next, and its virtual time grows by the device seconds
that it used. A new client starts at the virtual time of the client that ran last: being idle earns no credit, and debt
is not forgotten. A second of the background class costs as much as 15 interactive seconds, so background work gives way
but never starves: it has at least 1/16 of the device. Requests of one client finish in order of arrival within a lane
(a generator); lanes take turns.

Try it: ``pytest tests/studio/engine/scheduling/test_fair_queue.py``
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from typing import Generic, Protocol, TypeVar

BACKGROUND_SHARE = 1 / 16
_FORGET = 256  # virtual times of idle clients are cleaned up when there are more than this


class Queueable(Protocol):
    """What is queued."""

    @property
    def client(self) -> str:
        """The client that it belongs to."""

    @property
    def background(self) -> bool:
        """Whether it has low priority."""

    @property
    def lane(self) -> str:
        """Jobs of one client in one lane finish in order of arrival."""


J = TypeVar("J", bound=Queueable)


class Work(Enum):
    """The next action for a job."""

    FINISH = "finish"
    ADMIT = "admit"
    STEP = "step"


_FINISH, _ADMIT, _STEP = Work.FINISH, Work.ADMIT, Work.STEP  # Python 3.11 looks members up by a call


class _Lane(Generic[J]):
    """The jobs of one client in one lane, by their numbers, which rise in order of arrival."""

    def __init__(self) -> None:
        self.waiting: dict[J, int] = {}
        self.running: dict[J, int] = {}

    @property
    def oldest(self) -> J | None:
        """The running job that came first."""
        return next(iter(self.running), None)

    def drop(self, job: J) -> bool:
        """Remove a job. Returns whether the lane is empty."""
        self.waiting.pop(job, None)
        self.running.pop(job, None)
        return not (self.waiting or self.running)


def _file(jobs: dict[J, int], job: J, number: int) -> None:
    """Insert a job in the order of numbers; mostly it is the last."""
    last = next(reversed(jobs.values()), -1)
    jobs[job] = number
    if number < last:
        ordered = sorted(jobs.items(), key=lambda each: each[1])
        jobs.clear()
        jobs.update(ordered)


class _PriorityClass(Generic[J]):
    """The clients of one priority class."""

    def __init__(self, price: float, most: int) -> None:
        self.price, self.most = price, most
        self.time = 0.0  # of the class
        self.blocked = False  # no admissions until something is released
        self.done: deque[J] = deque()
        self.clients: dict[str, OrderedDict[str, _Lane[J]]] = {}  # their lanes, the one served longest ago first
        self._times: dict[str, float] = {}
        self._now = 0.0
        self._admissions: list[tuple[float, int, str]] = []  # heaps; what is out of date is dropped when it surfaces
        self._steps: list[tuple[float, int, str]] = []
        self._serial = count()

    def lanes(self) -> Iterator[_Lane[J]]:
        return (lane for lanes in self.clients.values() for lane in lanes.values())

    def accept(self, job: J, number: int) -> None:
        client = job.client
        if client not in self.clients:
            if len(self._times) > _FORGET:
                self._forget()
            self._times[client] = max(self._times.get(client, 0.0), self._now)
        _file(self._lane(job).waiting, job, number)
        self._push(client)

    def admit(self, job: J, number: int) -> None:
        lane = self._lane(job)
        lane.waiting.pop(job, None)
        _file(lane.running, job, number)
        self._push(job.client)

    def remove(self, job: J) -> None:
        if job in self.done:
            self.done.remove(job)
        self._drop(job)

    def finish(self, job: J) -> None:
        self._drop(job)
        self.done.append(job)

    def charge(self, job: J, seconds: float) -> None:
        """Charge the job's client, and move the job's lane behind the other lanes of that client."""
        client = job.client
        if job.lane in self.clients.get(client, ()):
            self.clients[client].move_to_end(job.lane)
        if seconds > 0:
            self._times[client] = self._times.get(client, self._now) + seconds
        self._push(client)

    def next(self, enough: Callable[[J], bool]) -> tuple[Work, J] | None:
        """The next job and its action."""
        if self.done:
            return _FINISH, self.done[0]
        admit = None if self.blocked else self._first(self._admissions, lambda lanes: self._to_admit(lanes, enough))
        step = self._first(self._steps, self._to_step)
        if admit is not None and (step is None or self._times[admit.client] <= self._times[step.client]):
            self._now = max(self._now, self._times[admit.client])
            return _ADMIT, admit
        if step is not None:
            self._now = max(self._now, self._times[step.client])
            return _STEP, step
        return None

    def _to_admit(self, lanes: OrderedDict[str, _Lane[J]], enough: Callable[[J], bool]) -> J | None:
        """The client's oldest queued job, among lanes that want more running jobs."""
        if sum(len(lane.running) for lane in lanes.values()) >= self.most:
            return None
        heads = [
            next(iter(lane.waiting.items()))
            for lane in lanes.values()
            if lane.waiting and (lane.oldest is None or not enough(lane.oldest))
        ]
        return min(heads, key=lambda each: each[1])[0] if heads else None

    @staticmethod
    def _to_step(lanes: OrderedDict[str, _Lane[J]]) -> J | None:
        for lane in lanes.values():
            for oldest in lane.running:
                return oldest
        return None

    def _push(self, client: str) -> None:
        lanes = self.clients.get(client)
        if lanes is None:
            return
        entry = (self._times[client], next(self._serial), client)
        heapq.heappush(self._steps, entry)
        for lane in lanes.values():
            if lane.waiting:
                heapq.heappush(self._admissions, entry)
                break

    def _first(
        self, heap: list[tuple[float, int, str]], look: Callable[[OrderedDict[str, _Lane[J]]], J | None]
    ) -> J | None:
        """What `look` finds for the client with the least virtual time; other clients leave the heap until pushed."""
        while heap:
            time, _, client = heap[0]
            if client in self.clients and self._times[client] == time:
                found = look(self.clients[client])
                if found is not None:
                    return found
            heapq.heappop(heap)
        return None

    def _lane(self, job: J) -> _Lane[J]:
        return self.clients.setdefault(job.client, OrderedDict()).setdefault(job.lane, _Lane())

    def _drop(self, job: J) -> None:
        lanes: dict[str, _Lane[J]] = self.clients.get(job.client, OrderedDict())
        if job.lane in lanes and lanes[job.lane].drop(job):
            del lanes[job.lane]
            if not lanes:
                del self.clients[job.client]
        self._push(job.client)

    def _forget(self) -> None:
        """Drop the accounts of idle clients that owe nothing."""
        self._times = {
            client: time for client, time in self._times.items() if client in self.clients or time > self._now
        }


def _busy(each: _PriorityClass[J]) -> bool:
    return bool(each.done or each.clients)


class FairQueue(Generic[J]):
    """Jobs accepted and not ended. At most `most` jobs of a client run at once in each class."""

    def __init__(self, most: int) -> None:
        self._classes = (_PriorityClass[J](1.0, most), _PriorityClass[J](1 / BACKGROUND_SHARE - 1, most))
        self._parked: OrderedDict[J, None] = OrderedDict()
        self._now = 0.0
        self._numbers: dict[J, int] = {}  # of all jobs, in the order they came
        self._next = count()

    def __len__(self) -> int:
        return len(self._numbers)

    def jobs(self) -> list[J]:
        """All jobs: queued, running, parked and done."""
        found: list[J] = list(self._parked)
        for each in self._classes:
            for lane in each.lanes():
                found += (*lane.running, *lane.waiting)
            found += each.done
        return found

    def waiting(self) -> list[J]:
        """Queued jobs, not admitted yet."""
        return [job for each in self._classes for lane in each.lanes() for job in lane.waiting]

    def accept(self, job: J) -> None:
        """Add a job to the queue."""
        found = self._class(job)
        if not _busy(found):
            found.time = max(found.time, self._now)
        self._numbers[job] = next(self._next)
        found.accept(job, self._numbers[job])

    def next(self, enough: Callable[[J], bool] = lambda oldest: False) -> tuple[Work, J] | None:
        """The next job and its action; None if there is none.

        `enough(oldest)` says for the oldest running job of a lane whether its batch is large enough; then the other
        jobs of the lane wait.
        """
        interactive, background = self._classes
        for each in (background, interactive) if background.time < interactive.time else self._classes:
            due = each.next(enough)
            if due is not None:
                self._now = max(self._now, each.time)
                return due
        return None

    def lane(self, job: J) -> list[J]:
        """The running jobs of a running job's lane, oldest first."""
        return list(self._class(job).clients[job.client][job.lane].running)

    def done(self, job: J) -> list[J]:
        """The jobs of the same class that are due for their finish, in order."""
        return list(self._class(job).done)

    def admitted(self, job: J) -> None:
        """The job has started: it runs."""
        self._class(job).admit(job, self._numbers[job])

    def charge(self, job: J, seconds: float, *, done: bool = False) -> None:
        """Charge device seconds; a job that is `done` is due for its finish."""
        found = self._class(job)
        found.time += seconds * found.price
        found.charge(job, seconds)
        if done:
            found.finish(job)

    def removed(self, job: J) -> None:
        """The job has ended and released its memory, so other jobs may be admitted and stepped."""
        if self._parked.pop(job, job) is not None:
            self._class(job).remove(job)
        self._numbers.pop(job, None)
        self.released()

    def block(self, job: J) -> None:
        """There is no memory for this job: no job of its class is admitted until memory is released."""
        self._class(job).blocked = True

    def park(self, job: J) -> None:
        """There is no memory for this running job's step: it is parked until memory is released."""
        self._class(job).remove(job)
        self._parked[job] = None

    @property
    def parked(self) -> list[J]:
        """Parked jobs, oldest first."""
        return list(self._parked)

    def released(self) -> None:
        """Memory was released: unblock admission and requeue the parked jobs."""
        for each in self._classes:
            each.blocked = False
        parked, self._parked = self._parked, OrderedDict()
        for job in parked:
            self._class(job).accept(job, self._numbers[job])
            self._class(job).admit(job, self._numbers[job])

    def _class(self, job: J) -> _PriorityClass[J]:
        return self._classes[job.background]
