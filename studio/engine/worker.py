"""The worker: the thread that runs the turns of a loop and its calls, with a watchdog and writer threads.

Calls of plugins run in the worker's thread, so that a step needs no thread switch. If a call exceeds its timeout, the
watchdog abandons that thread (Python cannot stop one) and a new thread continues the same turn, in which the call has
raised TimedOut; what the abandoned thread returns later is discarded. A call that never releases Python's global lock
(GIL) cannot be abandoned. Writer threads encode and store output concurrently with the next steps; there are several,
as most of their time is spent waiting for the disk.

Try it: ``pytest tests/studio/engine/test_worker.py``
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from studio.devices import torch_setup
from studio.engine.calls.call import Call, Calling, Outcome
from studio.engine.calls.watchdog import Watchdog, WriterThreads, timed_out
from studio.engine.loop import Loop
from studio.engine.outcomes.completion import Later
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import DeviceLost, EngineClosed, StudioError, TimedOut, describe

_WRITERS = 4  # 1,000 small files take a third of the time of one thread; see benchmarks/workflow.py


class Worker:
    """Runs the turns of the loop that `make` returns, in a daemon thread that starts with the first request.

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
        self._command_ready = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._watchdog = Watchdog()
        self._writers = WriterThreads(_WRITERS, self._watchdog)
        self._pending = 0  # calls in the writer threads
        self._loop = make(self.later)

    def accept(self, entries: Sequence[TrackedRequest]) -> None:
        """Have the loop accept requests, all before its next turn. Raises EngineClosed."""
        with self._command_ready:
            if self._closing:
                raise EngineClosed("the engine is closed", hint="make a new Studio")
            if self._thread is None:
                self._start(self._run)
            self._commands.extend(partial(self._loop.accept, entry) for entry in entries)
            self._command_ready.notify()

    def cancel(self, entry: TrackedRequest) -> None:
        """Have the loop cancel a request before its next turn."""
        self._enqueue(partial(self._loop.cancel, entry))

    def pause(self, entry: TrackedRequest) -> None:
        """Have the loop save and end a request before its next turn."""
        self._enqueue(partial(self._loop.pause, entry))

    def later(self, call: Call, then: Callable[[Outcome], None]) -> None:
        """Run a call in a writer thread, and pass its outcome to `then` between two turns. See `completion.Later`."""
        with self._command_ready:
            self._pending += 1
        self._writers.submit(call, lambda outcome: self._enqueue(partial(then, outcome), done=1))

    def close(self, patience: float | None) -> None:
        """End the thread; waits at most `patience` seconds for the call in flight (None: until it returns)."""
        with self._command_ready:
            self._closing = True
            self._command_ready.notify()
        here = threading.current_thread()
        if self._thread is None or here is self._thread or self._writers.owns(here):
            return
        if self._over.wait(patience):
            self._thread.join()

    def _enqueue(self, command: Callable[[], None], done: int = 0) -> None:
        with self._command_ready:
            self._pending -= done
            self._commands.append(command)
            self._command_ready.notify()

    def _start(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target, name="studio-engine", daemon=True)
        self._thread.start()

    def _run(self, turn: Calling[bool] | None = None, failed: TimedOut | None = None) -> None:
        """Run turns until closed, starting with `turn` if a thread was abandoned in it."""
        try:
            with torch_setup.Inference() as inference:
                self._open(first=turn is None)
                busy = turn is not None and self._drive(turn, inference, failed)
                while self._run_commands(busy):
                    busy = self._drive(self._loop.turn(), inference)
        except _Abandoned:
            return
        for entry in self._loop.queue.jobs():
            self._loop.cancel(entry)
        while self._pending or self._commands:
            self._run_commands(busy=False, closing=False)
        self._writers.close()
        self._watchdog.close()
        self._closed()
        self._over.set()

    def _open(self, *, first: bool) -> None:
        """Open the device; if that fails, every request ends with the reason."""
        try:
            self._enter()
            if first:
                self._opened()
        except Exception as error:  # a driver may raise anything
            message = f"the device cannot be opened: {describe(error, 200)}"
            self._loop.recovery.device_lost(
                DeviceLost(message, hint="free its memory or choose another; `--device cpu` does without it")
            )

    def _run_commands(self, busy: bool, *, closing: bool = True) -> bool:
        """Run the queued commands, waiting for one if the loop is idle. Returns False when the worker closes."""
        if busy and not self._commands:  # a command that arrives now runs after the next turn
            return not self._closing
        if not busy and closing:
            self._idle()
        with self._command_ready:
            while not (busy or self._commands or (closing and self._closing)):
                self._command_ready.wait()
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            try:
                command()
            except Exception as error:  # a bug in the loop itself
                self._fail_all(error)
        return not self._closing

    def _fail_all(self, error: Exception) -> None:
        """After a bug in the loop itself: fail all requests, and keep the thread."""
        for entry in self._loop.queue.jobs():
            self._loop.fail(entry, StudioError(f"the engine failed: {describe(error)}"))

    def _drive(
        self, turn: Calling[bool], inference: torch_setup.Inference, failed: BaseException | None = None
    ) -> bool:
        """Run a turn with its calls."""
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
                raise _Abandoned
            del call  # the rest of the turn may need the memory that the call references

    def _take_over(self, call: Call, turn: Calling[bool]) -> None:
        """Called by the watchdog: abandon the thread, and continue the turn in a new one."""
        stuck = self._thread
        assert stuck is not None
        self._start(partial(self._run, turn, timed_out(call, stuck)))


class _Abandoned(Exception):
    """The thread's call was abandoned: another thread runs the loop now."""
