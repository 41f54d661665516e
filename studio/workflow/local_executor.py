"""The local executor: jobs become requests to the engines of this process, which batch them.

It reads media from the store by hash only.

Try it: ``studio run best -p prompt="a red apple"``
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from studio.engine import CancelledEvent, Event, Failed, Finished, Loading, Progress, Request, Started, Ticket
from studio.engine.router import RequestRouter
from studio.errors import Cancelled, StudioError
from studio.generator import Generator
from studio.media import Media
from studio.recipe import MediaRef
from studio.requests import Requests
from studio.spec import JobSpec, ModelRef
from studio.store import Store
from studio.versions import libraries
from studio.weights.checksums import hash_weights
from studio.workflow.executor import JobProgress, JobResult, JobUpdate

_CACHED = 64  # decoded media, least recently used: several nodes often read the same media


class LocalExecutor:
    """Runs jobs on `router`, which is created when the first job is submitted."""

    def __init__(
        self,
        requests: Requests,
        store: Store,
        router: Callable[[], RequestRouter],
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        prepare: Callable[[Request], Request] = lambda request: request,
    ) -> None:
        """`settings` are further facts that determine the output: device, dtype and `invariant`. `options` are fields
        for every JobSpec: client, priority and time limit. `prepare` may change each request, for example to continue
        from a saved state.
        """
        self._requests, self._store, self._router = requests, store, router
        self._settings, self._options, self._prepare = dict(settings), dict(options), prepare
        self._tickets: list[Ticket] = []
        self._media: OrderedDict[str, Media] = OrderedDict()
        self._identities: dict[tuple[str, Hashable], dict[str, Any]] = {}

    def identity(self, job: JobSpec) -> dict[str, Any]:
        """Generator and plugin with their versions, inputs' declaration, weights by hash, libraries, settings."""
        generator, ref = self._requests.weights(job)
        key = (job.generator, ref.key)
        if key not in self._identities:
            self._identities[key] = self._identify(generator, ref)
        return self._identities[key]

    def submit(self, jobs: list[tuple[JobSpec, Callable[[JobUpdate], None]]]) -> None:
        """Submit the jobs to the engines together."""
        ready: list[tuple[Request, Callable[[JobUpdate], None]]] = []
        for job, report in jobs:
            try:
                ready.append((self._request(job), report))
            except StudioError as error:
                report(JobResult(error=error))
        if ready:
            tickets = self._router().submit_many([request for request, _ in ready])
            self._tickets = [*(each for each in self._tickets if not each.done), *tickets]
            for ticket, (_, report) in zip(tickets, ready, strict=True):
                ticket.listen(_listener(report))

    def cancel(self) -> None:
        """Cancel unfinished jobs."""
        for ticket in self._tickets:
            if not ticket.done:
                ticket.cancel()

    def pause(self) -> None:
        """Save the states of unfinished jobs to disk and end them; one that cannot be saved is finished first."""
        for ticket in self._tickets:
            if not ticket.done:
                ticket.pause()
        for ticket in self._tickets:
            for _ in ticket.events():
                pass

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
        return self._prepare(self._requests.of_spec(job.model_copy(update=self._options), fetch=self._fetch))

    def _fetch(self, ref: MediaRef) -> Media:
        found = self._media.pop(ref.sha256, None)
        if found is None:  # an empty text is false
            found = self._store.open(ref.sha256)
        self._media[ref.sha256] = found
        while len(self._media) > _CACHED:
            self._media.popitem(last=False)
        return found


def _listener(report: Callable[[JobUpdate], None]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Loading):
            report(JobProgress(0, 0, doing=f"loading {event.generator} on {event.device}"))
        elif isinstance(event, Started):
            report(JobProgress(0, event.steps))
        elif isinstance(event, Progress):
            report(JobProgress(event.position, event.steps, event.eta_s))
        elif isinstance(event, Finished):
            recipe = event.media.recipe
            report(JobResult(event.media.ref, notices=recipe.notices if recipe else ()))
        elif isinstance(event, Failed):
            report(JobResult(error=event.error))
        elif isinstance(event, CancelledEvent):
            report(JobResult(error=Cancelled("the request was cancelled")))

    return listen
