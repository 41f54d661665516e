"""Locks between processes, and between openings of one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from studio.locks import is_locked, lock, try_lock

HOLDER = """
import os, sys
from studio.locks import lock
lock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_held_until_its_process_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert is_locked(path)
        descriptor = os.open(path, os.O_RDWR)
        assert not try_lock(descriptor)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert not is_locked(path)
        assert try_lock(descriptor)
        assert is_locked(path), "another opening in the same process"
        os.close(descriptor)
    assert not is_locked(path)


def test_folders_and_files_without_a_name_have_locks(tmp_path: Path) -> None:
    one, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert try_lock(one)
    assert not try_lock(other)
    os.close(one)
    lock(other)
    os.close(other)


def test_many_may_ask_at_once(tmp_path: Path) -> None:
    """Asking takes the lock for a moment; another that asks then is not told that the file is held."""
    path = tmp_path / "lock"
    path.touch()
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.extend(is_locked(path) for _ in range(50))) for _ in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False] * 150
