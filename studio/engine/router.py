"""The router: one engine per device; each request goes to one of them.

A request goes to the engine that is expected to finish it first: the one with the least work left, by measured step
times, where loading the model first counts twice. So requests stay where their model is resident until the queue there
is longer than that. An accepted request does not move to another engine.

Try it: ``pytest tests/studio/engine/test_router.py``
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from studio.engine.engine import Engine
from studio.engine.request import Request
from studio.engine.ticket import Ticket

_UNKNOWN_REQUEST_S = 1.0  # assumed cost of a request to a generator that was never measured
_UNKNOWN_LOAD_S = 3.0
_RELUCTANCE = 2.0  # a second copy of a model also uses memory


@dataclass
class _Queue:
    """The open tickets of one engine, and the seconds that requests to each generator took there."""

    engine: Engine
    open: list[Ticket] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)

    def tidy(self) -> None:
        """Record the times of finished tickets, and remove them."""
        for ticket in self.open:
            if ticket.done:
                name, seconds = ticket.request.generator.name, ticket.timing.work
                self.took[name] = 0.5 * (self.took.get(name, seconds) + seconds)
        self.open = [ticket for ticket in self.open if not ticket.done]

    def backlog_s(self) -> float:
        """Seconds of work that are accepted and not finished."""
        return sum(self.left_s(ticket) for ticket in self.open)

    def left_s(self, ticket: Ticket) -> float:
        left = ticket.left_s(self.engine.profile)
        return self.cost_s(ticket.request) if left is None else left

    def cost_s(self, request: Request) -> float:
        return self.took.get(request.generator.name, _UNKNOWN_REQUEST_S)


class RequestRouter(Protocol):
    """What accepts requests: the engines of this process, or those of a server."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the engines, in order."""

    def submit_many(self, requests: Sequence[Request], device: str | None = None) -> list[Ticket]:
        """Accept requests together, on any device or on the one named, and return their tickets in order."""

    def close(self) -> None:
        """Cancel unfinished requests."""


class Router:
    """One or more engines; `close` closes them all. Thread-safe."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self._queues = [_Queue(engine) for engine in engines]
        self._guard = threading.Lock()

    def submit_many(self, requests: Sequence[Request], device: str | None = None) -> list[Ticket]:
        """Accept requests, each on the engine that will be done with it soonest, or all on `device`, and return their
        tickets in order. Those that go to one engine are accepted as one. Raises EngineClosed.
        """
        if len(self._queues) == 1:
            return self.engines[0].submit_many(requests)
        with self._guard:
            places = self._place(requests, device)
            tickets: dict[int, Ticket] = {}
            for queue in self._queues:
                mine = [index for index, place in enumerate(places) if place is queue]
                made = queue.engine.submit_many([requests[index] for index in mine]) if mine else []
                queue.open += made
                tickets.update(zip(mine, made, strict=True))
        return [tickets[index] for index in range(len(requests))]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the engines, in order."""
        return tuple(engine.device for engine in self.engines)

    def close(self) -> None:
        """Cancel unfinished requests on every engine, and wait for the steps in flight."""
        for engine in self.engines:
            engine.close()

    def _place(self, requests: Sequence[Request], device: str | None) -> list[_Queue]:
        may = [queue for queue in self._queues if device in (None, queue.engine.device)]
        for queue in may:
            queue.tidy()
        waits = [queue.backlog_s() for queue in may]
        loads: list[set[str]] = [set() for _ in may]
        places = []
        for request in requests:
            name = request.generator.name
            took = [each for queue in may if (each := queue.engine.load_s(request)) is not None]
            load = max(took, default=_UNKNOWN_LOAD_S)
            load_s = [
                0.0 if name in coming or queue.engine.resident(request) else load
                for queue, coming in zip(may, loads, strict=True)
            ]
            costs = [wait + _RELUCTANCE * load for wait, load in zip(waits, load_s, strict=True)]
            best = costs.index(min(costs))
            waits[best] += load_s[best] + may[best].cost_s(request)
            loads[best].add(name)  # the next request of this generator finds the model loaded
            places.append(may[best])
        return places
