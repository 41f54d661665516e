"""Completion: how requests end. Memory is released, watchers are notified, and the last event is emitted, once.

When the output exists, a request releases its device memory. Encoding and storing the output runs `later`, on a writer
thread, and the request ends when that is complete.

Try it: ``pytest tests/studio/engine/test_loop.py tests/studio/engine/test_worker.py``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, cast

from studio.engine.calls.call import Call, Outcome
from studio.engine.calls.failures import as_error
from studio.engine.events import CancelledEvent, Event, Failed, Finished, Notice
from studio.engine.observe.watcher import Watcher
from studio.engine.scheduling.admission import Admission
from studio.engine.scheduling.batching import Groups
from studio.engine.scheduling.fair_queue import FairQueue
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import StudioError, TimedOut
from studio.media import Media


class Later(Protocol):
    """Runs a call without blocking the loop, then calls `then` with its `Call.outcome` between two turns."""

    def __call__(self, call: Call, then: Callable[[Outcome], None]) -> None:
        """Return at once."""


def at_once(call: Call, then: Callable[[Outcome], None]) -> None:
    """Run the call inline."""
    then(call.outcome())


class Saver(Protocol):
    """Saves states (autosave). No method may raise."""

    def save_if_due(self, entry: TrackedRequest) -> None:
        """The request has started or completed a step, and has steps left."""

    def save(self, entry: TrackedRequest) -> bool:
        """Save its state now; False if that is impossible, which the user is told."""

    def end(self, entry: TrackedRequest, event: Event) -> None:
        """The request has ended with this event."""


class Completion:
    """Ends the requests of one loop."""

    def __init__(
        self,
        admission: Admission,
        queue: FairQueue[TrackedRequest],
        groups: Groups,
        watcher: Watcher,
        saver: Saver | None,
        clock: Callable[[], float],
        later: Later,
        hung: Callable[[TrackedRequest, TimedOut], None],
    ) -> None:
        self._hung = hung
        self._admission, self._queue, self._groups = admission, queue, groups
        self._watcher, self._saver, self._clock, self._later = watcher, saver, clock, later

    def cancel(self, entry: TrackedRequest) -> None:
        """Cancel a request and release its state, unless its output exists."""
        entry.cancelled = True
        if not entry.released:
            self._end(entry, CancelledEvent())

    def pause(self, entry: TrackedRequest) -> None:
        """Save a request's state and end it as `cancel` does, so that it can be resumed. It goes on if its work is
        done, or if its state cannot be saved.
        """
        if entry.done or entry.released:
            return
        if entry.state is not None and self._saver is not None:
            if not self._saver.save(entry):
                return
            entry.paused = True
        self.cancel(entry)

    def fail(self, entry: TrackedRequest, error: StudioError) -> None:
        """End a request with an error, unless it has ended."""
        if not entry.ended:
            self._end(entry, Failed(error))

    def finish(self, entry: TrackedRequest, rest: Callable[[], Media]) -> None:
        """Release a request, run `rest` (which stores its output) later, and end the request with the result."""
        self._release(entry)
        self._later(Call(entry.name, rest, entry.limit_s), partial(self._finished, entry))

    def _finished(self, entry: TrackedRequest, outcome: Outcome) -> None:
        made, failed = outcome
        if failed is None:
            if entry.last_notice:
                entry.emit(Notice(entry.last_notice))
            self._end(entry, Finished(cast(Media, made)))
            return
        found = as_error(entry.name, "finish", failed)
        if isinstance(found, TimedOut):
            self._hung(entry, found)
        self.fail(entry, found)

    def _end(self, entry: TrackedRequest, event: Event) -> None:
        """Release what the request still holds and emit its last event."""
        self._release(entry)
        entry.ended = True
        self._watcher.ended(entry.number, entry.name, event.outcome, self._clock())
        if self._saver is not None:
            self._saver.end(entry, event)
        emit, entry.emit = entry.emit, _silent
        emit(event)

    def _release(self, entry: TrackedRequest) -> None:
        """Release the memory of a request, and remove it from the queue."""
        if entry.released:
            return
        entry.released = True
        self._groups.remove(entry)
        self._admission.release(entry)
        self._queue.removed(entry)
        entry.state = entry.model = entry.rng = entry.key = None
        entry.late.clear()


def notify(entry: TrackedRequest, notices: Iterable[str]) -> None:
    """Emit the notices that the request has not emitted yet."""
    for text in notices:
        if text not in entry.notices:
            entry.notices.append(text)
            entry.emit(Notice(text))


def _silent(event: Event) -> None:
    """Replaces `emit` of an ended request, so that its listeners can be freed."""
    raise AssertionError(f"an event came after the last: {event}")
