"""The local worker: jobs become requests to the engines of this process, which batch what may share a step.

It reads media out of the store by their hash alone. This module knows nothing of graphs.

Try it: ``studio run best -p prompt="a red apple"``
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from studio.engine import CancelledEvent, Event, Failed, Finished, Loading, Progress, Request, Started, Ticket
from studio.engine.router import Router
from studio.errors import Cancelled, StudioError
from studio.generator import Generator
from studio.media import Media
from studio.recipe import MediaRef
from studio.requests import Requests
from studio.spec import JobSpec, ModelRef
from studio.store import Store
from studio.versions import libraries
from studio.weights.checksums import hash_weights
from studio.workflow.seam import News, Outcome, Step

_KEPT = 64  # media that were read last are kept decoded: several nodes tend to take the same


class LocalWorker:
    """Does jobs on `router`, which is asked for only when there is something to do."""

    def __init__(
        self,
        requests: Requests,
        store: Store,
        router: Callable[[], Router],
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """`settings` is what else decides the output: device and dtype, as they were chosen, and `invariant`; `options`
        are fields that every JobSpec gets: for whom it is done.
        """
        self._requests, self._store, self._router = requests, store, router
        self._settings, self._options = dict(settings), dict(options)
        self._tickets: list[Ticket] = []
        self._media: OrderedDict[str, Media] = OrderedDict()
        self._identities: dict[tuple[str, tuple[str, str]], dict[str, Any]] = {}

    def identity(self, job: JobSpec) -> dict[str, Any]:
        """Generator and plugin with their versions, inputs' declaration, weights by hash, libraries, settings."""
        generator, ref = self._requests.weights(job)
        key = (job.generator, ref.key)
        if key not in self._identities:
            self._identities[key] = self._identify(generator, ref)
        return self._identities[key]

    def submit(self, jobs: list[tuple[JobSpec, Callable[[News], None]]]) -> None:
        """Hand the jobs to the engines as one."""
        ready: list[tuple[Request, Callable[[News], None]]] = []
        for job, tell in jobs:
            try:
                ready.append((self._request(job), tell))
            except StudioError as error:
                tell(Outcome(error=error))
        if ready:
            tickets = self._router().submit_many([request for request, _ in ready])
            self._tickets = [*(each for each in self._tickets if not each.done), *tickets]
            for ticket, (_, tell) in zip(tickets, ready, strict=True):
                ticket.listen(_listener(tell))

    def cancel(self) -> None:
        """Cancel what is not done."""
        for ticket in self._tickets:
            if not ticket.done:
                ticket.cancel()

    def _identify(self, generator: Generator, ref: ModelRef) -> dict[str, Any]:
        schema = json.dumps(generator.Inputs.model_json_schema(), sort_keys=True, default=str)
        weights = hash_weights(generator.weights(ref))
        return {
            "generator": generator.name,
            "version": generator.version,
            "plugin": self._requests.owner(generator).model_dump(),
            "inputs": hashlib.sha256(schema.encode()).hexdigest(),
            "weights": weights,
            "libraries": libraries(),
            "settings": self._settings if weights else {},
        }

    def _request(self, job: JobSpec) -> Request:
        return self._requests.of_spec(job.model_copy(update=self._options), fetch=self._fetch)

    def _fetch(self, ref: MediaRef) -> Media:
        found = self._media.pop(ref.sha256, None) or self._store.open(ref.sha256)
        self._media[ref.sha256] = found
        while len(self._media) > _KEPT:
            self._media.popitem(last=False)
        return found


def _listener(tell: Callable[[News], None]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Loading):
            tell(Step(0, 0, doing=f"loading {event.generator} on {event.device}"))
        elif isinstance(event, Started):
            tell(Step(0, event.steps))
        elif isinstance(event, Progress):
            tell(Step(event.position, event.steps, event.eta_s))
        elif isinstance(event, Finished):
            recipe = event.media.recipe
            tell(Outcome(event.media.ref, notices=recipe.notices if recipe else ()))
        elif isinstance(event, Failed):
            tell(Outcome(error=event.error))
        elif isinstance(event, CancelledEvent):
            tell(Outcome(error=Cancelled("it was cancelled")))

    return listen
