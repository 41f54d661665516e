"""The watchdog over calls that may not return, and the archivists: threads that run calls beside the engine's.

A call that outlives its limit is left to its thread, as Python cannot end one, and another thread takes the place of
that. A call that holds Python's global lock for ever cannot be left behind in this way. This module knows nothing of
plugins, requests or loops.

Try it: ``pytest tests/studio/engine/test_worker.py``
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from studio.engine.calls.call import Call, Outcome
from studio.errors import TimedOut


def timed_out(call: Call, stuck: threading.Thread) -> TimedOut:
    """What a call raises whose thread did not come back from it in time."""
    message = f"`{call.generator}` did not return within {call.limit_s:g} s and was abandoned"
    hint = "ask for less, or allow more time; it is refused further work while it hangs"
    return TimedOut(call.generator, message, hint=hint, over=lambda: not stuck.is_alive())


class Watchdog:
    """Looks, in a thread of its own, after calls that are not over in time; such a call is watched no more.

    It sleeps from one due time to the next that it finds, so that watching a call wakes nobody. Watching takes no lock
    either: whoever takes a call out of the dictionary has it, and only one can.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._watched: dict[Call, tuple[float, Callable[[], None]]] = {}  # when a call is late, and what to do then
        self._wakes = -math.inf  # when it looks next; before its thread was started, never
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, call: Call, late: Callable[[], None]) -> None:
        """Begin to watch; `late` is called if the call is not over in its time."""
        due = time.monotonic() + call.limit_s
        self._watched[call] = due, late
        if self._thread is None:
            self._begin()
        elif due < self._wakes:
            with self._news:
                self._news.notify()

    def _begin(self) -> None:
        with self._news:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="studio-watchdog", daemon=True)
                self._thread.start()

    def over(self, call: Call) -> bool:
        """The call is over; False if that comes too late."""
        return self._watched.pop(call, None) is not None

    def close(self) -> None:
        """End the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._news:
            while not self._closed:
                self._wakes = math.inf  # from here on a call that comes in is seen below, or notifies
                self._look(now := time.monotonic())
                self._news.wait(None if self._wakes == math.inf else self._wakes - now)

    def _look(self, now: float) -> None:
        """Find what is late, and when to look next. Apart from `_run`, which would keep calls alive while it waits."""
        for call, (due, late) in self._watched.copy().items():
            if due > now:
                self._wakes = min(self._wakes, due)
            elif self.over(call):
                late()


class Archivists:
    """Up to `most` daemon threads that run calls, each within its limit."""

    def __init__(self, most: int, watchdog: Watchdog) -> None:
        self._most, self._watchdog = most, watchdog
        self._work: SimpleQueue[tuple[Call, Callable[[Outcome], None]] | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def submit(self, call: Call, then: Callable[[Outcome], None]) -> None:
        """Run a call in one of the threads, and hand its outcome to `then` there, or TimedOut in the watchdog's."""
        self._work.put((call, then))
        with self._guard:
            if len(self._threads) < self._most:
                self._start()

    def own(self, thread: threading.Thread) -> bool:
        """Whether this is one of the threads."""
        return thread in self._threads

    def close(self) -> None:
        """Let the threads end when they have done what was submitted."""
        for _ in range(len(self._threads)):
            self._work.put(None)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="studio-archivist", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        while (found := self._work.get()) is not None:
            if not self._do(*found):
                return
            del found  # it holds on to media

    def _do(self, call: Call, then: Callable[[Outcome], None]) -> bool:
        """Run a call; False if that came to its end too late: another thread has the place of this one."""
        self._watchdog.watch(call, partial(self._replace, call, then, threading.current_thread()))
        outcome = call.outcome()
        if not self._watchdog.over(call):
            return False
        then(outcome)
        return True

    def _replace(self, call: Call, then: Callable[[Outcome], None], stuck: threading.Thread) -> None:
        with self._guard:
            self._threads.discard(stuck)
            self._start()
        then((None, timed_out(call, stuck)))
