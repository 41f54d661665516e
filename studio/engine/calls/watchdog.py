"""The watchdog (call timeouts), and the writer threads that run calls concurrently with the engine's.

A call that exceeds its timeout keeps its thread, as Python cannot stop one, and another thread takes its place. A call
that never releases Python's global lock (GIL) cannot be abandoned.

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
    """The error of a call that exceeded its timeout."""
    message = f"`{call.generator}` did not return within {call.limit_s:g} s and was abandoned"
    hint = "raise the time limit, or reduce the work; the generator gets no work until the call returns"
    return TimedOut(call.generator, message, hint=hint, over=lambda: not stuck.is_alive())


class Watchdog:
    """Finds calls that exceed their timeout, in a thread of its own; each is reported once.

    It sleeps until the next deadline, so that watching a call wakes no thread. Watching takes no lock either: only one
    thread can remove a call from the dictionary.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._watched: dict[Call, tuple[float, Callable[[], None]]] = {}  # its deadline, and what to call then
        self._wakes = -math.inf  # the next check; never, before the thread starts
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, call: Call, late: Callable[[], None]) -> None:
        """Start to watch a call; `late` is called if it exceeds its timeout."""
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
        """The call has returned. Returns False if it was abandoned before."""
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
                self._wakes = math.inf  # from here on a new call is seen below, or notifies
                self._look(now := time.monotonic())
                self._news.wait(None if self._wakes == math.inf else self._wakes - now)

    def _look(self, now: float) -> None:
        """Report late calls, and find the next deadline. A method of its own, so that `_run` keeps no call alive."""
        for call, (due, late) in self._watched.copy().items():
            if due > now:
                self._wakes = min(self._wakes, due)
            elif self.over(call):
                late()


class WriterThreads:
    """Up to `most` daemon threads that run calls (encoding and storing output), each with its timeout."""

    def __init__(self, most: int, watchdog: Watchdog) -> None:
        self._most, self._watchdog = most, watchdog
        self._work: SimpleQueue[tuple[Call, Callable[[Outcome], None]] | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def submit(self, call: Call, then: Callable[[Outcome], None]) -> None:
        """Run a call in one of the threads. `then` gets its outcome there, or TimedOut in the watchdog's thread."""
        self._work.put((call, then))
        with self._guard:
            if len(self._threads) < self._most:
                self._start()

    def owns(self, thread: threading.Thread) -> bool:
        """Whether this is one of the threads."""
        return thread in self._threads

    def close(self) -> None:
        """End the threads after the submitted calls."""
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
            del found  # it references media

    def _do(self, call: Call, then: Callable[[Outcome], None]) -> bool:
        """Run a call. Returns False if it was abandoned: another thread has replaced this one."""
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
