"""The supervisor: a small process that looks after the one that runs the jobs, and starts another if that one dies.

A job that ends its process (a crash in a library, `os._exit`, the system's killer of processes that use too much
memory) so costs only itself. The supervisor sees how the process died, and its successor knows that a job was the
cause; if both are killed from outside, no job is suspected.

Try it: ``studio jobs run``
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from studio.errors import StudioError

_MOST_CRASHES = 10  # in a row, without a job that ended in between
_JOB, _OVER = b"j", b"o"
_PR_SET_PDEATHSIG = 1
_PASSED_ON = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Supervisor:
    """The supervisor, as its child knows it: its process id, a pipe to it, and how the child before died (empty if
    there was none).
    """

    pid: int
    pipe: int
    crash: str = ""

    def check(self) -> None:
        """End this process if the supervisor has gone: whoever starts the next one needs the database."""
        if os.getppid() != self.pid:
            os._exit(1)

    def ended(self) -> None:
        """A job has ended: what crashes later is another matter."""
        os.write(self.pipe, _JOB)


def supervise(main: Callable[[Supervisor], int]) -> int:
    """Run `main`, which must not raise, in a child process, again if that dies, and return its exit code.

    Call it before there are threads: the child is a copy of this process. Raises StudioError if it died too often
    without a job that ended.
    """
    crash, crashes = "", 0
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        receiver, sender = os.pipe()
        own = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until there is somebody to pass them on to
        child = os.fork()
        if not child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
            os.close(receiver)
            os.setpgid(0, 0)  # a terminal sends Ctrl-C to the supervisor only, which passes it on
            supervisor = Supervisor(own, sender, crash)
            _die_with_parent()
            supervisor.check()  # it may have gone before
            code = main(supervisor)
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(sender, _OVER)
            os._exit(code)  # what this process has left to do is the supervisor's
        os.close(sender)
        news, code = _follow(child, receiver)
        if _OVER in news:
            return code
        crashes = 1 if _JOB in news else crashes + 1
        crash = _how(code)
        if crashes >= _MOST_CRASHES:
            message = f"the process that runs the jobs died {crashes} times in a row: {crash}"
            raise StudioError(message, hint="`studio plugins` lists what it loads; --debug shows more")


def _follow(child: int, receiver: int) -> tuple[bytes, int]:
    """Wait for the end of a child: what it said, and its exit code. Ctrl-C and SIGTERM are passed on."""
    before = {each: signal.signal(each, lambda number, _: os.kill(child, number)) for each in _PASSED_ON}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    try:
        news = b""
        while piece := os.read(receiver, 4096):
            news = (news + piece)[-4096:]
        _, status = os.waitpid(child, 0)
        return news, os.waitstatus_to_exitcode(status)
    finally:
        os.close(receiver)
        for each, handler in before.items():
            signal.signal(each, handler)


def _die_with_parent() -> None:
    """On Linux the kernel kills the child with its supervisor; elsewhere the worker looks for itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _how(code: int) -> str:
    """How a process died, in words."""
    if code >= 0:
        return f"it ended itself with the exit code {code}"
    return f"it died of the signal {signal.Signals(-code).name}"
