"""Calling plugins: each call runs in a thread of its own kind and may take only so long.

`Caller` keeps one thread for all calls, so that torch's per-thread pools stay warm. A call that outlives its limit is
abandoned: the thread is left to itself (Python cannot end one), its result will be thrown away, and the next call gets
a new thread. A call that holds Python's global lock for ever cannot be left behind in this way. This module knows
nothing of requests.

Try it: ``python -c "import time; from studio.engine.calls import *; Caller()('x', lambda: time.sleep(9), 1)"``
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from studio import torch_setup
from studio.errors import TimedOut

T = TypeVar("T")


class Call(Protocol):
    """Runs `work` for a generator, for at most `limit_s` seconds. Raises what it raises, or TimedOut."""

    def __call__(self, generator: str, work: Callable[[], T], limit_s: float) -> T:
        """Return what `work` returns."""


def directly(generator: str, work: Callable[[], T], limit_s: float) -> T:
    """Run it here and now, without a limit: what the pure loop does."""
    with torch_setup.inference():
        return work()


class Caller:
    """Runs calls in a thread beside; not to be used from two threads at once."""

    def __init__(self) -> None:
        self._thread: _Thread | None = None

    def __call__(self, generator: str, work: Callable[[], T], limit_s: float) -> T:
        """Run `work` in the thread beside and wait for it. Raises what it raises, or TimedOut."""
        thread = self._thread = self._thread or _Thread()
        thread.inbox.put(work)
        try:
            made, error = thread.outbox.get(timeout=limit_s)
        except queue.Empty:
            self._thread = None
            thread.inbox.put(None)  # should the call return one day, its thread ends
            message = f"`{generator}` did not return within {limit_s:g} s and was abandoned"
            hint = "ask for less, or allow more time; it is refused further work while it hangs"
            raise TimedOut(generator, message, hint=hint, over=lambda: not thread.is_alive()) from None
        if error is not None:
            raise error
        return cast(T, made)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.inbox.put(None)
            self._thread.join()
            self._thread = None


class _Thread(threading.Thread):
    """Runs what comes into its inbox until None comes."""

    def __init__(self) -> None:
        super().__init__(name="studio-plugins", daemon=True)
        self.inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (work := self.inbox.get()) is not None:
            self.outbox.put(_outcome(work))
            del work  # a thread that waits keeps nothing alive


def _outcome(work: Callable[[], object]) -> tuple[object, BaseException | None]:
    try:
        with torch_setup.inference():
            return work(), None
    except BaseException as error:  # SystemExit included: a plugin's thread ends only by None
        return None, error
