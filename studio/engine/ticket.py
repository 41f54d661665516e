"""Tickets: callers follow, await and cancel their requests with them, from any thread or event loop.

A ticket keeps a bounded number of events. If the caller is interrupted while it waits (Ctrl-C, or its task is
cancelled), the request is cancelled, which takes effect within one step.

Try it: ``pytest tests/studio/engine/test_ticket.py``
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Self, cast

from studio.engine.cost.profile import Profile
from studio.engine.events import Delta, Event, Failed, Finished, Loading, Preview, Progress
from studio.engine.request import Request, Timing
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import Busy, Cancelled, TimedOut
from studio.media import Media
from studio.waking import future_and_waker

if TYPE_CHECKING:
    pass

MAX_EVENTS = 1000
MAX_PREVIEWS = 16
MAX_UNFINISHED = 10_000
_number = attrgetter("number")
_DROPPED = frozenset((Loading, Progress, Preview))
_set = object.__setattr__  # events are frozen for all other code


class Ticket:
    """An accepted request: follow it, wait for it, cancel it. Safe to use from any thread.

    In a coroutine, ``await ticket`` returns the result, and ``async for event in ticket`` yields the events;
    cancelling the task cancels the request.
    """

    def __init__(
        self,
        request: Request,
        cancel: Callable[[TrackedRequest], None],
        ended: Callable[[], None] = lambda: None,
        pause: Callable[[TrackedRequest], None] = lambda _: None,
    ) -> None:
        """`ended` is called once, before the last event is delivered."""
        self.request = request
        self._guard = threading.RLock()
        self._news = threading.Condition(self._guard)
        self._followed = False  # a caller waits for events before the last
        self._events = _Events()
        self._listeners: list[Callable[[Event], None]] = []
        self._wakers: list[Callable[[], None]] = []  # of waiting coroutines
        self._cancel, self._ended, self._pause = cancel, ended, pause
        self._entry = TrackedRequest(request, self._emit, accepted=time.perf_counter())

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._events.last is not None

    @property
    def timing(self) -> Timing:
        """The time spent so far in each phase, in seconds."""
        return self._entry.timing

    def left_s(self, profile: Profile) -> float | None:
        """The device seconds of the remaining steps, by measured step times; None if these are not known yet."""
        state, group = self._entry.state, self._entry.group  # the engine's thread may release them at any time
        widths = profile.seconds(group) if group else {}
        if state is None or not widths:
            return None
        return min(seconds / width for width, seconds in list(widths.items())) * max(0, state.steps - state.position)

    def events(self, after: int = 0) -> EventStream:
        """Iterate over the events with a number above `after`, waiting for new ones, until the last; for `for` and
        `async for`.

        A ticket keeps about 1,000 events. Older Loading, Progress and Preview events are dropped, which leaves gaps in
        the numbers, and older Deltas are joined; all others are kept. The last 16 previews are kept. A Delta's `start`
        is the number of characters before it.
        """
        return EventStream(self, after)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with the events so far, then with each new one, in order. It is also called in the engine's
        thread, so it must be fast and must not raise.
        """
        with self._news:
            for event in self._events.kept:
                listener(event)
            self._listeners.append(listener)

    def result(self, timeout: float | None = None) -> Media:
        """Wait for the output. Raises the request's error, Cancelled, or TimeoutError (`timeout` in seconds)."""
        return self._outcome(self._wait(None, timeout))

    def cancel(self) -> None:
        """Cancel the request. It ends within one step, with CancelledEvent unless it finishes before that."""
        self._entry.cancelled = True
        self._cancel(self._entry)

    def pause(self) -> None:
        """Save the request's state to disk and end it, with CancelledEvent, within one step; its memory is released. It
        goes on, with a Notice that says why, if its state cannot be saved.
        """
        self._pause(self._entry)

    def __await__(self) -> Generator[object, None, Media]:
        event = yield from self._next(None).__await__()
        return self._outcome(event)

    def __aiter__(self) -> EventStream:
        return self.events()

    def _outcome(self, event: Event) -> Media:
        if isinstance(event, Finished):
            return event.media
        if isinstance(event, Failed):
            raise event.error
        raise Cancelled(f"the request to `{self.request.generator.name}` was cancelled")

    def _find(self, after: int | None) -> Event | None:
        return self._events.last if after is None else self._events.next(after)

    def _wait(self, after: int | None, timeout: float | None) -> Event:
        """Wait in this thread for the first event above that number; None means the last event."""
        try:
            with self._news:
                self._followed = self._followed or after is not None
                found = self._news.wait_for(lambda: self._find(after), timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise
        if found is None:
            raise TimeoutError(f"`{self.request.generator.name}` is not done after {timeout} s")
        return found

    async def _next(self, after: int | None) -> Event:
        """The same in a coroutine of any event loop."""
        import asyncio

        while True:
            with self._guard:
                if (found := self._find(after)) is not None:
                    return found
                self._followed = self._followed or after is not None
                future, waker = future_and_waker()
                self._wakers.append(waker)
            try:
                await future
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                with self._guard:
                    if waker in self._wakers:
                        self._wakers.remove(waker)

    def _emit(self, event: Event) -> None:
        last, events = event.last, self._events
        if last:
            self._ended()  # before callers are notified and submit more requests
        with self._guard:  # this runs in every step, so calls are inlined
            events.count = number = events.count + 1
            _set(event, "number", number)
            events.kept.append(event)
            if number > events.full or type(event) is Preview:
                events.tidy(event)
            if last or self._followed:  # waking callers that wait for the end would cost time in each step
                self._news.notify_all()
                wakers, self._wakers = self._wakers, []
                for wake in wakers:
                    wake()
            for listener in self._listeners:
                listener(event)


class EventStream:
    """Iterator over the events of a ticket, for `for` and `async for`. It ends after the last event."""

    def __init__(self, ticket: Ticket, after: int) -> None:
        self._ticket, self._after = ticket, after
        self._emitted_length = 0  # characters of text
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._over:
            raise StopIteration
        return self._take(self._ticket._wait(self._after, None))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        return self._take(await self._ticket._next(self._after))

    def _take(self, event: Event) -> Event:
        self._after, self._over = event.number, event.last
        if isinstance(event, Delta):
            if event.start < self._emitted_length:  # it was merged with text that was already delivered
                event = Delta(self._emitted_length, event.text[self._emitted_length - event.start :]).numbered(
                    event.number
                )
            self._emitted_length = event.start + len(event.text)
        return event


class _Events:
    """A bounded number of events, in order. After appending one, the caller increments `count`, and calls `tidy` if
    `count` is above `full` or the event is a preview.
    """

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self.count = 0
        self.full = MAX_EVENTS

    @property
    def last(self) -> Event | None:
        """The event that ended the request, if any."""
        return self.kept[-1] if self.kept and self.kept[-1].last else None

    def next(self, after: int) -> Event | None:
        """The first event with a number above `after`, if there is one yet."""
        if after >= self.count:
            return self.last  # after the last event there is only the last event
        return self.kept[bisect_right(self.kept, after, key=_number)]

    def tidy(self, newest: Event) -> None:
        """Drop and merge old events."""
        if isinstance(newest, Preview):
            previews = [at for at, each in enumerate(self.kept) if isinstance(each, Preview)]
            if len(previews) > MAX_PREVIEWS:
                del self.kept[previews[0]]
        if self.count > self.full:
            stay = _thinned(self.kept[: -MAX_EVENTS // 2])
            self.kept[: -MAX_EVENTS // 2] = stay
            self.full = self.count + max(MAX_EVENTS // 2, len(stay))  # not at each event, which would be slow


def _thinned(events: Sequence[Event]) -> list[Event]:
    """The events that are kept; adjacent Deltas are merged, with the number of the last."""
    stay = [each for each in events if type(each) not in _DROPPED]
    made: list[Event] = []
    for joins, group in groupby(stay, lambda each: isinstance(each, Delta)):
        if joins:
            several = cast(list[Delta], list(group))
            text = "".join(each.text for each in several)
            made.append(Delta(several[0].start, text).numbered(several[-1].number))
        else:
            made += group
    return made


class RequestLimit:
    """The limit of unfinished requests, shared by all engines. Safe to use from any thread."""

    def __init__(self, most: int = MAX_UNFINISHED) -> None:
        self.most = most
        self._unfinished = 0
        self._guard = threading.Lock()

    def enter(self, count: int) -> None:
        """Count requests as unfinished. Raises Busy, without counting any, if they would exceed the limit."""
        with self._guard:
            if self._unfinished + count > self.most:
                message = f"{self._unfinished:,} requests are unfinished; with {count:,} more they exceed {self.most:,}"
                raise Busy(message, hint="wait for some to end, or raise `Studio(max_requests=…)`")
            self._unfinished += count

    def leave(self, count: int = 1) -> None:
        """Count requests as ended."""
        with self._guard:
            self._unfinished -= count


def follow(ticket: Ticket) -> Generator[Event, None, None]:
    """Yield the events of a ticket. Leaving early cancels the request; a failure is raised after its Failed event."""
    try:
        for event in ticket.events():
            yield event
            if isinstance(event, Failed):
                raise event.error
    finally:
        if not ticket.done:
            ticket.cancel()


def wait(tickets: list[Ticket], seconds: float | None = None) -> list[Media]:
    """Wait for all outputs; an error or Ctrl-C cancels the rest. Raises TimedOut after `seconds` for one of them."""
    try:
        return [ticket.result(seconds) for ticket in tickets]
    except TimeoutError:
        message = f"it took longer than {seconds:g} seconds, the limit for a recipe from elsewhere"
        name = tickets[0].request.spec.generator
        raise TimedOut(name, message, hint="run it yourself with the inputs that `studio show` prints") from None
    finally:
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()
