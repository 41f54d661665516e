"""The engine: a loop with the worker that takes its turns, and the tickets by which callers follow their requests.

The worker's thread is a daemon that starts with the first request and ends with `close` (or the interpreter). A caller
that is interrupted (Ctrl-C) while it waits cancels its request, which takes effect within one step. This module knows
nothing of plugins' discovery or of terminals.

Try it: ``pytest tests/studio/engine/test_engine.py``
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

from studio import devices
from studio.attention.serving import Serving
from studio.devices import torch_setup
from studio.devices.memory import host_free_memory
from studio.engine.completion import Later
from studio.engine.cost.profile import Measured
from studio.engine.loop import MAX_RUNNING, Entry, Keeper, Loop
from studio.engine.memory.ledger import MARGIN, Ledger
from studio.engine.memory.model_cache import Models
from studio.engine.observe.watcher import Watcher
from studio.engine.provenance import recipe_writer
from studio.engine.request import Event, Failed, Finished, Request, Timing
from studio.engine.worker import Worker
from studio.errors import Cancelled, NotStored, StoreError
from studio.media import Media
from studio.store import Store

_EXIT_PATIENCE_S = 10.0  # how long the interpreter's end waits for a step in flight
_SAVE_EVERY_S = 5.0  # what was measured, while requests come and go


class Ticket:
    """An accepted request: follow it, wait for it, cancel it. Safe to use from any thread."""

    def __init__(self, request: Request, cancel: Callable[[Entry], None]) -> None:
        self.request = request
        self._guard = threading.RLock()
        self._news = threading.Condition(self._guard)
        self._followed = False  # somebody waits for events before the last
        self._events: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._cancel = cancel
        self._entry = Entry(request, self._emit, accepted=time.perf_counter())

    @property
    def done(self) -> bool:
        """Whether the last event has come."""
        return bool(self._events) and self._events[-1].last

    @property
    def timing(self) -> Timing:
        """Where the time went so far, in seconds."""
        return self._entry.timing

    def left_s(self, measured: Measured) -> float | None:
        """Seconds of the device that its steps will still take, as measured; None where that is not known yet."""
        state, group = self._entry.state, self._entry.group  # the engine's thread may let go of them meanwhile
        widths = measured.seconds(group) if group else {}
        if state is None or not widths:
            return None
        return min(seconds / width for width, seconds in list(widths.items())) * max(0, state.steps - state.position)

    def events(self) -> Iterator[Event]:
        """Yield every event from the first, waiting for more until the last one. Ctrl-C while waiting cancels."""
        seen = 0
        while True:
            event = self._wait(seen, None)
            yield event
            if event.last:
                return
            seen += 1

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event from the first, in order; from the engine's thread too, so it must be quick
        and must not raise.
        """
        with self._news:
            for event in self._events:
                listener(event)
            self._listeners.append(listener)

    def result(self, timeout: float | None = None) -> Media:
        """Wait for the media. Raises what the request failed with, Cancelled, TimeoutError (`timeout` in seconds)."""
        event = self._wait(-1, timeout)
        if isinstance(event, Finished):
            return event.media
        if isinstance(event, Failed):
            raise event.error
        raise Cancelled(f"the request to `{self.request.generator.name}` was cancelled")

    def cancel(self) -> None:
        """Ask for the end; it comes within one step, with CancelledEvent unless the work was done before."""
        self._entry.cancelled = True
        self._cancel(self._entry)

    def _wait(self, index: int, timeout: float | None) -> Event:
        """Wait for the event at `index`; -1 means the last one."""
        try:
            with self._news:
                self._followed = self._followed or index >= 0
                ready = self._news.wait_for(lambda: self.done or 0 <= index < len(self._events), timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise
        if not ready:
            raise TimeoutError(f"`{self.request.generator.name}` is not done after {timeout} s")
        return self._events[index]

    def _emit(self, event: Event) -> None:
        with self._guard:
            self._events.append(event)
            if self._followed or event.last:  # waking those who wait for the end would cost each step
                self._news.notify_all()
            for listener in self._listeners:
                listener(event)


class Engine:
    """Runs requests on one device. A context manager; `close` cancels what is unfinished.

    `device`: ``cpu``, ``cuda``, ``cuda:N`` or None to choose; `dtype` overrides what generators choose; what is made
    goes into `store`, if one is given, together with the media it was made from. `memory` is the budget in bytes for
    models, states and steps (None: what is free when the first request comes, less a tenth). `measured` is what was
    learned of step times and memory. `watchers` are told of all work, and `keeper` may save states between steps.
    `numbers` gives the requests their numbers, where engines share their watchers. `attention` is who serves `attend`
    within generators (None: Studio's own backends). `host_share` is the part of free host memory that models may be put
    off to; `notices` go to every request.
    Raises UsageError for a device that is not here.
    """

    def __init__(
        self,
        device: str | None = None,
        dtype: str | None = None,
        *,
        store: Store | None = None,
        memory: int | None = None,
        measured: Measured | None = None,
        max_running: int = MAX_RUNNING,
        watchers: Sequence[Watcher] = (),
        keeper: Keeper | None = None,
        numbers: Iterator[int] | None = None,
        attention: Serving | None = None,
        host_share: float = 0.5,
        notices: Sequence[str] = (),
    ) -> None:
        self.device = devices.choose(device)
        self.measured = measured or Measured()
        host = _host_ledger(self.device, host_share)
        self._models = Models(self.device, dtype, Ledger(memory), host=host, attention=attention)

        def make(later: Later) -> Loop:
            return Loop(
                self._models,
                partial(_complete, store),
                time.perf_counter,
                max_running,
                watchers,
                keeper,
                later=later,
                measured=self.measured,
                gauge=devices.device(self.device).gauge(),
                free_threads=torch_setup.threads_are_free(self.device),
                numbers=numbers,
                notices=notices,
            )

        self._worker = Worker(
            make,
            enter=devices.device(self.device).enter,
            opened=partial(_open, self._models),
            idle=partial(self.measured.save, every_s=_SAVE_EVERY_S),
            closed=partial(_close, self._models, self.measured),
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
        """What loading the request's model took here when it was last done, in seconds, or None."""
        return self._models.load_s(request)

    def submit(self, request: Request) -> Ticket:
        """Accept a request. Raises EngineClosed after `close`."""
        return self.submit_many([request])[0]

    def submit_many(self, requests: Sequence[Request]) -> list[Ticket]:
        """Accept requests as one: nothing of them is done before the engine knows all. Raises EngineClosed after
        `close`.
        """
        tickets = [Ticket(request, self._worker.cancel) for request in requests]
        self._worker.accept([ticket._entry for ticket in tickets])
        return tickets

    def close(self) -> None:
        """Cancel what is unfinished, wait for the step in flight, and let go of the models."""
        self._finalizer.detach()
        self._worker.close(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _host_ledger(device: str, share: float) -> Ledger | None:
    """Host memory that models may be put off to, a share of what is free; None where it cannot be pinned for copies."""
    free = host_free_memory() if devices.device(device).pins else None
    return None if free is None else Ledger(int(free * share))


def _open(models: Models) -> None:
    """Where no budget was given, it is what is free when the first request comes."""
    if models.ledger.budget is None and (free := devices.device(models.device).free_memory()) is not None:
        models.ledger.budget = int(free * (1 - MARGIN))


def _close(models: Models, measured: Measured) -> None:
    models.clear()
    measured.save()


def _complete(store: Store | None, entry: Entry, media: Media) -> Callable[[], Media]:
    """What is left to do: write the recipe, and store what was made and what it was made from."""
    write, parents, stored = recipe_writer(entry), entry.request.inputs.media(), entry.request.spec.stored

    def keep() -> Media:
        made = media.attach(write(media), None)
        if store is None or not stored:
            return made
        try:
            for parent in parents:
                store.put(parent.attach(None, None))
            return made.attach(made.recipe, store.put(made).path)
        except StoreError as error:
            raise NotStored(made, error) from error

    return keep
