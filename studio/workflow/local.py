"""The local worker: tasks become requests to the engines of this process, which batch what may share a step.

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
from studio.engine.models import hash_weights
from studio.engine.provenance import libraries
from studio.engine.router import Router
from studio.errors import Cancelled, StudioError
from studio.generator import Generator
from studio.inputs import Inputs
from studio.media import Media
from studio.recipe import MediaRef, PluginRef
from studio.serving import serve
from studio.store import Store
from studio.workflow.seam import News, Outcome, Step, Task

_KEPT = 64  # media that were read last are kept decoded: several nodes tend to take the same


class LocalWorker:
    """Does tasks on `router`, which is asked for only when there is something to do."""

    def __init__(
        self,
        generators: Mapping[str, Generator],
        owner: Callable[[str], PluginRef],
        store: Store,
        router: Callable[[], Router],
        settings: Mapping[str, Any],
    ) -> None:
        """`settings` is what else decides what is made: device and dtype, as they were chosen, and `invariant`."""
        self._generators, self._owner, self._store, self._router = generators, owner, store, router
        self._settings = dict(settings)
        self._tickets: list[Ticket] = []
        self._media: OrderedDict[str, Media] = OrderedDict()
        self._identities: dict[str, dict[str, Any]] = {}

    def identity(self, task: Task) -> dict[str, Any]:
        """Generator and plugin with their versions, inputs' declaration, weights by hash, libraries, settings."""
        generator = self._generators[task.generator]
        if type(generator).serving is not Generator.serving:  # which weights serve depends on the inputs
            return self._identify(generator, serve(generator, self._inputs(task), home=self._store.root))
        if task.generator not in self._identities:
            self._identities[task.generator] = self._identify(generator, generator)
        return self._identities[task.generator]

    def submit(self, tasks: list[tuple[Task, Callable[[News], None]]]) -> None:
        """Hand the tasks to the engines as one."""
        ready: list[tuple[Request, Callable[[News], None]]] = []
        for task, tell in tasks:
            try:
                ready.append((self._request(task), tell))
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

    def _identify(self, generator: Generator, serving: Generator) -> dict[str, Any]:
        schema = json.dumps(generator.Inputs.model_json_schema(), sort_keys=True, default=str)
        weights = hash_weights(serving.weights())
        return {
            "generator": generator.name,
            "version": generator.version,
            "plugin": self._owner(generator.name).model_dump(),
            "inputs": hashlib.sha256(schema.encode()).hexdigest(),
            "weights": weights,
            "libraries": libraries(),
            "settings": self._settings if weights else {},
        }

    def _inputs(self, task: Task) -> Inputs:
        return self._generators[task.generator].Inputs.from_recipe(task.inputs, self._fetch)

    def _request(self, task: Task) -> Request:
        inputs = self._inputs(task)
        invariant = bool(self._settings.get("invariant"))
        generator = serve(self._generators[task.generator], inputs, home=self._store.root, invariant=invariant)
        return Request(
            generator, inputs, task.seed, self._owner(task.generator), label=task.label, parents=task.parents,
            invariant=invariant,
        )  # fmt: skip

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
