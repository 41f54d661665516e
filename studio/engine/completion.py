"""How requests end: what they hold is let go of, whoever watches is told, and the last event is emitted, once.

When its last state was made into media, a request holds nothing of the device any more; what is left to do with the
media (encode, write) is done `later`, and the request ends with that. This module decides nothing.

Try it: ``pytest tests/studio/engine/test_loop.py tests/studio/engine/test_worker.py``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, cast

from studio.engine.admission import Room
from studio.engine.batching import Groups
from studio.engine.calls.call import Call, Outcome
from studio.engine.calls.failures import as_error
from studio.engine.entry import Entry
from studio.engine.events import CancelledEvent, Event, Failed, Finished, Notice
from studio.engine.fair_queue import Order
from studio.engine.observe.watcher import Watcher
from studio.errors import StudioError, TimedOut
from studio.media import Media


class Later(Protocol):
    """Runs a call without holding the loop up, and tells the loop, between two turns, its `Call.outcome` by `then`."""

    def __call__(self, call: Call, then: Callable[[Outcome], None]) -> None:
        """Return at once."""


def at_once(call: Call, then: Callable[[Outcome], None]) -> None:
    """Do the rest here and now."""
    then(call.outcome())


class Keeper(Protocol):
    """Who saves states. Neither call may raise."""

    def keep(self, entry: Entry) -> None:
        """The request has begun or moved one step on, and is not done."""

    def end(self, entry: Entry, event: Event) -> None:
        """This is the request's last event."""


class Ending:
    """Ends the requests of one loop."""

    def __init__(
        self,
        room: Room,
        order: Order[Entry],
        groups: Groups,
        watcher: Watcher,
        keeper: Keeper | None,
        clock: Callable[[], float],
        later: Later,
        hung: Callable[[Entry, TimedOut], None],
    ) -> None:
        self._hung = hung
        self._room, self._order, self._groups = room, order, groups
        self._watcher, self._keeper, self._clock, self._later = watcher, keeper, clock, later

    def cancel(self, entry: Entry) -> None:
        """End a request and release its state, unless its work is done."""
        entry.cancelled = True
        if not entry.released:
            self._end(entry, CancelledEvent())

    def fail(self, entry: Entry, error: StudioError) -> None:
        """End a request with an error, unless it has ended."""
        if not entry.ended:
            self._end(entry, Failed(error))

    def finish(self, entry: Entry, rest: Callable[[], Media]) -> None:
        """Release a request, have the `rest` done on what was made of it, and end it with what that returns."""
        self._release(entry)
        self._later(Call(entry.name, rest, entry.limit_s), partial(self._finished, entry))

    def _finished(self, entry: Entry, outcome: Outcome) -> None:
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

    def _end(self, entry: Entry, event: Event) -> None:
        """Release what the request still holds and emit its last event."""
        self._release(entry)
        entry.ended = True
        self._watcher.ended(entry.number, entry.name, event.outcome, self._clock())
        if self._keeper is not None:
            self._keeper.end(entry, event)
        emit, entry.emit = entry.emit, _silent
        emit(event)

    def _release(self, entry: Entry) -> None:
        """Let go of what a request holds, and of its place in the order."""
        if entry.released:
            return
        entry.released = True
        self._groups.remove(entry)
        self._room.leave(entry)
        self._order.removed(entry)
        entry.state = entry.model = entry.rng = entry.key = None
        entry.late.clear()


def tell(entry: Entry, notices: Iterable[str]) -> None:
    """Tell the user what was not told yet."""
    for text in notices:
        if text not in entry.notices:
            entry.notices.append(text)
            entry.emit(Notice(text))


def _silent(event: Event) -> None:
    """Stand in for an ended entry's `emit`, so that whoever listened is let go of."""
    raise AssertionError(f"an event came after the last: {event}")
