"""The worker: the thread that takes a loop's turns and runs its calls, a watchdog over it, and archivists beside it.

A plugin's call runs in the worker's own thread, so that a step costs no change of threads. Should it outlive its limit,
the watchdog leaves that thread to itself (Python cannot end one) and has a new one take over the turn right there, with
TimedOut as what the call raised; whatever the old thread comes back with is thrown away, and it ends. A call that holds
Python's global lock for ever cannot be left behind in this way. Archivists do what is left to do on what was made
(encoding, writing) while the next steps compute; there are several, as most of that is waiting for the disk. This
module knows nothing of plugins or requests.

Try it: ``pytest tests/studio/engine/test_worker.py``
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from studio.devices import torch_setup
from studio.engine.calls.call import Call, Calling, Outcome
from studio.engine.calls.watchdog import Archivists, Watchdog, timed_out
from studio.engine.completion import Later
from studio.engine.entry import Entry
from studio.engine.loop import Loop
from studio.errors import DeviceLost, EngineClosed, StudioError, TimedOut, describe

_ARCHIVISTS = 4  # 1,000 small artifacts take a third of the time that one needs; see benchmarks/workflow.py


class Worker:
    """Does the turns of the loop that `make` makes, in a daemon thread that starts with the first request.

    `enter` is called in it, and in each thread that takes over; `opened` before the first turn, `idle` when there is
    nothing to do, and `closed` at its end.
    """

    def __init__(
        self,
        make: Callable[[Later], Loop],
        *,
        enter: Callable[[], None],
        opened: Callable[[], None],
        idle: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self._enter, self._opened, self._idle, self._closed = enter, opened, idle, closed
        self._mail = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._closing = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._watchdog = Watchdog()
        self._archivists = Archivists(_ARCHIVISTS, self._watchdog)
        self._pending = 0  # calls with them
        self._loop = make(self.later)

    def accept(self, entries: Sequence[Entry]) -> None:
        """Let the loop take requests in, all before its next turn. Raises EngineClosed."""
        with self._mail:
            if self._closing:
                raise EngineClosed("the engine is closed", hint="make a new Studio")
            if self._thread is None:
                self._start(self._run)
            self._inbox.extend(partial(self._loop.accept, entry) for entry in entries)
            self._mail.notify()

    def cancel(self, entry: Entry) -> None:
        """Let the loop end a request before its next turn; a closing one ends them all anyway."""
        self._post(partial(self._loop.cancel, entry))

    def later(self, call: Call, then: Callable[[Outcome], None]) -> None:
        """Run a call beside, and hand its outcome to `then` between two turns. See `ending.Later`."""
        with self._mail:
            self._pending += 1
        self._archivists.submit(call, lambda outcome: self._post(partial(then, outcome), done=1))

    def close(self, patience: float | None) -> None:
        """End the thread; waits at most `patience` seconds for the call in flight (None: until it is over)."""
        with self._mail:
            self._closing = True
            self._mail.notify()
        here = threading.current_thread()
        if self._thread is None or here is self._thread or self._archivists.own(here):
            return
        if self._over.wait(patience):
            self._thread.join()

    def _post(self, letter: Callable[[], None], done: int = 0) -> None:
        with self._mail:
            self._pending -= done
            self._inbox.append(letter)
            self._mail.notify()

    def _start(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target, name="studio-engine", daemon=True)
        self._thread.start()

    def _run(self, turn: Calling[bool] | None = None, failed: TimedOut | None = None) -> None:
        """Take turns until closed; with a `turn` that another thread left behind in a call, begin with that."""
        try:
            with torch_setup.Inference() as inference:
                self._open(first=turn is None)
                busy = turn is not None and self._drive(turn, inference, failed)
                while self._read_mail(busy):
                    busy = self._drive(self._loop.turn(), inference)
        except _LeftBehind:
            return
        for entry in self._loop.order.jobs():
            self._loop.cancel(entry)
        while self._pending or self._inbox:
            self._read_mail(busy=False, closing=False)
        self._archivists.close()
        self._watchdog.close()
        self._closed()
        self._over.set()

    def _open(self, *, first: bool) -> None:
        """Enter the device; if it cannot be opened, every request ends with the reason."""
        try:
            self._enter()
            if first:
                self._opened()
        except Exception as error:  # whatever a driver raises
            message = f"the device cannot be opened: {describe(error, 200)}"
            self._loop.lose(
                DeviceLost(message, hint="free its memory or choose another; `--device cpu` does without it")
            )

    def _read_mail(self, busy: bool, *, closing: bool = True) -> bool:
        """Do what came in, waiting for it where there is nothing else to do; False once it is time to close."""
        if busy and not self._inbox:  # a letter that comes in now is read after the next turn
            return not self._closing
        if not busy and closing:
            self._idle()
        with self._mail:
            while not (busy or self._inbox or (closing and self._closing)):
                self._mail.wait()
            letters = list(self._inbox)
            self._inbox.clear()
        for letter in letters:
            try:
                letter()
            except Exception as error:  # a fault of the loop itself
                self._fail_all(error)
        return not self._closing

    def _fail_all(self, error: Exception) -> None:
        """After a fault of the loop itself: end what is in hand, never the thread."""
        for entry in self._loop.order.jobs():
            self._loop.fail(entry, StudioError(f"the engine failed: {describe(error)}"))

    def _drive(
        self, turn: Calling[bool], inference: torch_setup.Inference, failed: BaseException | None = None
    ) -> bool:
        """Do a turn with its calls."""
        made: object = None
        while True:
            try:
                call = turn.send(made) if failed is None else turn.throw(failed)
            except StopIteration as end:
                return bool(end.value)
            except Exception as error:
                self._fail_all(error)
                return False
            inference.hold()
            self._watchdog.watch(call, partial(self._take_over, call, turn))
            made, failed = call.outcome()
            if not self._watchdog.over(call):
                raise _LeftBehind
            del call  # what comes next may need the memory that the call holds on to

    def _take_over(self, call: Call, turn: Calling[bool]) -> None:
        """Called by the watchdog: leave the thread to its call, and go on with the turn in a new one."""
        stuck = self._thread
        assert stuck is not None
        self._start(partial(self._run, turn, timed_out(call, stuck)))


class _LeftBehind(Exception):
    """The thread's call was abandoned: another has the loop now."""
