"""Locks between processes, on open files (filelock's `lock_descriptor`).

The kernel releases a lock however its process ends, so that a file which can be locked belongs to no process that
lives. Two openings of one file have two locks, also in one process.

Try it: ``python -c "from studio.locks import is_locked; print(is_locked('some.lock'))"``
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

TRIES, _PAUSE_S = 5, 0.002


def try_lock(descriptor: int, *, without: bool = False, tries: int = 1) -> bool:
    """Lock an open file or folder until it is closed; False if another process, or another opening of it, holds it.

    `without` is the answer if the file system has no locks. With `TRIES`, a process that only asks `is_locked` in the
    same moment is waited for.
    """
    from filelock import lock_descriptor  # importing it takes 10 ms, which a command that writes nothing is spared

    for attempt in range(tries):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            if lock_descriptor(descriptor, blocking=False):
                return True
        except OSError:
            return without
    return False


def lock(descriptor: int) -> None:
    """Wait for the lock of an open file or folder. Without locks in the file system it does nothing."""
    from filelock import lock_descriptor

    with suppress(OSError):
        lock_descriptor(descriptor, poll_interval=_PAUSE_S)


def is_locked(path: Path | str) -> bool:
    """Whether a process holds the lock of a file; False if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # another user's: not ours to take
        return True
    try:
        return not try_lock(descriptor, tries=TRIES)
    finally:
        os.close(descriptor)
