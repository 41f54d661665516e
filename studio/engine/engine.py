"""The engine: a loop, and the worker that runs it, for one device.

The worker's thread is a daemon that starts with the first request and ends with `close` (or the interpreter).

Try it: ``pytest tests/studio/engine/test_engine.py``
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

from studio import devices
from studio.attention.current import DispatchSettings
from studio.devices import torch_setup
from studio.devices.memory import host_free_memory
from studio.engine.cost.profile import Profile
from studio.engine.loop import MAX_RUNNING, Loop
from studio.engine.memory.ledger import MARGIN, Ledger
from studio.engine.memory.model_cache import ModelCache
from studio.engine.observe.watcher import Watcher
from studio.engine.outcomes.completion import Later, Saver
from studio.engine.provenance import recipe_writer
from studio.engine.request import Request
from studio.engine.scheduling.tracked import TrackedRequest
from studio.engine.ticket import RequestLimit, Ticket
from studio.engine.worker import Worker
from studio.errors import NotStored, StoreError
from studio.media import Media
from studio.store import Store

_EXIT_PATIENCE_S = 10.0  # how long the interpreter waits at exit for a step in flight
_SAVE_EVERY_S = 5.0  # how often the profile is saved while requests run


class Engine:
    """Runs requests on one device. A context manager; `close` cancels what is unfinished.

    `device`: ``cpu``, ``cuda``, ``cuda:N`` or None to choose; `dtype` overrides what generators choose; output
    goes into `store`, if one is given, together with the media it was made from. `memory` is the budget in bytes for
    models, states and steps (None: the memory that is free at the first request, minus a tenth). `profile` has measured
    step times and memory. `watchers` are notified of all work, and `saver` may save states between steps (autosave).
    `numbers` gives the requests their numbers, if engines share watchers. `attention` dispatches `attend` in generators
    (None: Studio's own backends). `host_share` is the fraction of free host memory for offloaded models; `notices` go
    to every request. `limit` counts unfinished requests (None: at most 10,000). Raises UsageError for a missing device.
    """

    def __init__(
        self,
        device: str | None = None,
        dtype: str | None = None,
        *,
        store: Store | None = None,
        memory: int | None = None,
        profile: Profile | None = None,
        max_running: int = MAX_RUNNING,
        watchers: Sequence[Watcher] = (),
        saver: Saver | None = None,
        numbers: Iterator[int] | None = None,
        attention: DispatchSettings | None = None,
        host_share: float = 0.5,
        notices: Sequence[str] = (),
        limit: RequestLimit | None = None,
    ) -> None:
        self._limit = limit or RequestLimit()
        self.device = devices.choose(device)
        self.profile = profile or Profile()
        host = _host_ledger(self.device, host_share)
        self._models = ModelCache(self.device, dtype, Ledger(memory), host=host, attention=attention)

        def make(later: Later) -> Loop:
            return Loop(
                self._models,
                partial(_complete, store),
                time.perf_counter,
                max_running,
                watchers,
                saver,
                later=later,
                profile=self.profile,
                probe=devices.device(self.device).memory_probe(),
                free_threads=torch_setup.threads_are_free(self.device),
                numbers=numbers,
                notices=notices,
            )

        self._worker = Worker(
            make,
            enter=devices.device(self.device).enter,
            opened=partial(_open, self._models),
            idle=partial(self.profile.save, every_s=_SAVE_EVERY_S),
            closed=partial(_close, self._models, self.profile),
        )
        self._finalizer = weakref.finalize(self, self._worker.close, _EXIT_PATIENCE_S)

    @property
    def ledger(self) -> Ledger:
        """The memory of the device, as the engine holds it."""
        return self._models.ledger

    def resident(self, request: Request) -> bool:
        """Whether the request's model is on the device."""
        return self._models.loaded(request)

    def load_s(self, request: Request) -> float | None:
        """How long the last load of the request's model took here, in seconds, or None."""
        return self._models.load_s(request)

    def submit(self, request: Request) -> Ticket:
        """Accept a request. Raises Busy if too many are unfinished, EngineClosed after `close`."""
        return self.submit_many([request])[0]

    def submit_many(self, requests: Sequence[Request]) -> list[Ticket]:
        """Accept requests as one: nothing of them is done before the engine knows all. Raises as `submit` does, and
        then none was accepted.
        """
        self._limit.enter(len(requests))
        tickets = [Ticket(request, self._worker.cancel, self._limit.leave, self._worker.pause) for request in requests]
        try:
            self._worker.accept([ticket._entry for ticket in tickets])
        except BaseException:
            self._limit.leave(len(requests))
            raise
        return tickets

    def close(self) -> None:
        """Cancel unfinished requests, wait for the step in flight, and release the models."""
        self._finalizer.detach()
        self._worker.close(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _host_ledger(device: str, share: float) -> Ledger | None:
    """The ledger of host memory for offload, a fraction of the free memory; None if it cannot be pinned."""
    free = host_free_memory() if devices.device(device).pins_memory else None
    return None if free is None else Ledger(int(free * share))


def _open(models: ModelCache) -> None:
    """If no budget was given, set it to the free memory at the first request, minus a margin."""
    if models.ledger.budget is None and (free := devices.device(models.device).free_memory()) is not None:
        models.ledger.budget = int(free * (1 - MARGIN))


def _close(models: ModelCache, profile: Profile) -> None:
    models.clear()
    profile.save()


def _complete(store: Store | None, entry: TrackedRequest, media: Media) -> Callable[[], Media]:
    """Returns a function that writes the recipe, and stores the output and its input media."""
    write, parents, stored = recipe_writer(entry), entry.request.inputs.media(), entry.request.spec.stored
    label = entry.request.label

    def keep() -> Media:
        made = media.attach(write(media), None).labelled(label)
        if store is None or not stored:
            return made
        try:
            for parent in parents:
                store.put(parent.attach(None, None))
            return made.attach(made.recipe, store.put(made).path)
        except StoreError as error:
            raise NotStored(made, error) from error

    return keep
