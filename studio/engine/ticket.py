"""Tickets: by which callers follow, await and cancel their requests, from any thread or event loop.

A ticket keeps a bounded number of events. A caller that is interrupted (Ctrl-C, or its task is cancelled) while it
waits cancels its request, which takes effect within one step. This module knows nothing of loops or devices.

Try it: ``pytest tests/studio/engine/test_ticket.py``
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Self, cast

from studio.engine.cost.profile import Profile
from studio.engine.events import Delta, Event, Failed, Finished, Loading, Preview, Progress
from studio.engine.request import Request, Timing
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import Busy, Cancelled, TimedOut
from studio.media import Media

if TYPE_CHECKING:
    import asyncio

MAX_EVENTS = 1000
MAX_PREVIEWS = 16
MAX_UNFINISHED = 10_000
_number = attrgetter("number")
_DROPPED = frozenset((Loading, Progress, Preview))
_set = object.__setattr__  # events are frozen for all others


class Ticket:
    """An accepted request: follow it, wait for it, cancel it. Safe to use from any thread.

    In a coroutine, ``await ticket`` is its result, and ``async for event in ticket`` its events; a task that is
    cancelled there cancels the request.
    """

    def __init__(
        self, request: Request, cancel: Callable[[TrackedRequest], None], ended: Callable[[], None] = lambda: None
    ) -> None:
        """`ended` is called once, before the last event is delivered."""
        self.request = request
        self._guard = threading.RLock()
        self._news = threading.Condition(self._guard)
        self._followed = False  # somebody waits for events before the last
        self._events = _Events()
        self._listeners: list[Callable[[Event], None]] = []
        self._wakers: list[Callable[[], None]] = []  # of coroutines that wait
        self._cancel, self._ended = cancel, ended
        self._entry = TrackedRequest(request, self._emit, accepted=time.perf_counter())

    @property
    def done(self) -> bool:
        """Whether the last event has come."""
        return self._events.last is not None

    @property
    def timing(self) -> Timing:
        """Where the time went so far, in seconds."""
        return self._entry.timing

    def left_s(self, profile: Profile) -> float | None:
        """Seconds of the device that its steps will still take, as measured; None where that is not known yet."""
        state, group = self._entry.state, self._entry.group  # the engine's thread may let go of them meanwhile
        widths = profile.seconds(group) if group else {}
        if state is None or not widths:
            return None
        return min(seconds / width for width, seconds in list(widths.items())) * max(0, state.steps - state.position)

    def events(self, after: int = 0) -> EventStream:
        """The events with a number above `after`, waiting for more until the last; for `for` and `async for`.

        A ticket keeps the last 1,000 events or so. Of older ones Loading, Progress and Preview are dropped, which shows
        as a gap in the numbers, and the text of neighbouring Deltas is joined; all others stay. The last 16 previews
        are kept. A Delta's `start` tells how it follows what came before `after`.
        """
        return EventStream(self, after)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with the events so far, then with each that comes, in order; from the engine's thread too, so
        it must be quick and must not raise.
        """
        with self._news:
            for event in self._events.kept:
                listener(event)
            self._listeners.append(listener)

    def result(self, timeout: float | None = None) -> Media:
        """Wait for the media. Raises what the request failed with, Cancelled, TimeoutError (`timeout` in seconds)."""
        return self._outcome(self._wait(None, timeout))

    def cancel(self) -> None:
        """Ask for the end; it comes within one step, with CancelledEvent unless the work was done before."""
        self._entry.cancelled = True
        self._cancel(self._entry)

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

        loop = asyncio.get_running_loop()
        while True:
            with self._guard:
                if (found := self._find(after)) is not None:
                    return found
                self._followed = self._followed or after is not None
                future: asyncio.Future[None] = loop.create_future()
                waker = partial(_wake, loop, future)
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
            self._ended()  # before anyone hears of it, and asks for more
        with self._guard:  # each step comes through here: what is written out is not called
            events.count = number = events.count + 1
            _set(event, "number", number)
            events.kept.append(event)
            if number > events.full or type(event) is Preview:
                events.tidy(event)
            if last or self._followed:  # waking those who wait for the end would cost each step
                self._news.notify_all()
                wakers, self._wakers = self._wakers, []
                for wake in wakers:
                    wake()
            for listener in self._listeners:
                listener(event)


def _wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Wake the coroutine that waits for `future` in `loop`, from any thread."""
    try:
        loop.call_soon_threadsafe(_settle, future)
    except RuntimeError:
        return  # the loop was closed: nobody waits there any more


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class EventStream:
    """The events of a ticket from one on, for `for` and for `async for`. It ends after the last event."""

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
    """A bounded number of events, in order. Whoever appends one counts it, and calls `tidy` once `count` is above
    `full`, and after each preview.
    """

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self.count = 0
        self.full = MAX_EVENTS

    @property
    def last(self) -> Event | None:
        """The last event, if it has come."""
        return self.kept[-1] if self.kept and self.kept[-1].last else None

    def next(self, after: int) -> Event | None:
        """The first event with a number above `after`, if it has come."""
        if after >= self.count:
            return self.last  # a number that is not given yet: all that can follow an end is the end
        return self.kept[bisect_right(self.kept, after, key=_number)]

    def tidy(self, newest: Event) -> None:
        """Let go of what need not stay."""
        if isinstance(newest, Preview):
            previews = [at for at, each in enumerate(self.kept) if isinstance(each, Preview)]
            if len(previews) > MAX_PREVIEWS:
                del self.kept[previews[0]]
        if self.count > self.full:
            stay = _thinned(self.kept[: -MAX_EVENTS // 2])
            self.kept[: -MAX_EVENTS // 2] = stay
            self.full = self.count + max(MAX_EVENTS // 2, len(stay))  # thinning often would cost each event


def _thinned(events: Sequence[Event]) -> list[Event]:
    """Those that must stay; neighbouring Deltas as one, with the number of the last."""
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
    """How many requests may be unfinished at once, on all engines that share it. Safe to use from any thread."""

    def __init__(self, most: int = MAX_UNFINISHED) -> None:
        self.most = most
        self._unfinished = 0
        self._guard = threading.Lock()

    def enter(self, count: int) -> None:
        """Count requests as unfinished. Raises Busy, without counting any, if they would be too many."""
        with self._guard:
            if self._unfinished + count > self.most:
                message = f"{self._unfinished:,} requests are unfinished; with {count:,} more they exceed {self.most:,}"
                raise Busy(message, hint="wait for some of them, or raise `Studio(max_requests=…)`")
            self._unfinished += count

    def leave(self, count: int = 1) -> None:
        """So many have ended."""
        with self._guard:
            self._unfinished -= count


def follow(ticket: Ticket) -> Generator[Event, None, None]:
    """The events of a ticket. Leaving them early cancels the request; a failure is raised after its Failed event."""
    try:
        for event in ticket.events():
            yield event
            if isinstance(event, Failed):
                raise event.error
    finally:
        if not ticket.done:
            ticket.cancel()


def wait(tickets: list[Ticket], seconds: float | None = None) -> list[Media]:
    """Wait for all; whatever goes wrong, and Ctrl-C, cancels the rest. Raises TimedOut after `seconds` for one."""
    try:
        return [ticket.result(seconds) for ticket in tickets]
    except TimeoutError:
        message = f"it took longer than {seconds:g} seconds, the most that a recipe from elsewhere may"
        name = tickets[0].request.spec.generator
        raise TimedOut(name, message, hint="ask for it yourself with the inputs that `studio show` tells") from None
    finally:
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()
