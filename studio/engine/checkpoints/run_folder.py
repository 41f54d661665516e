"""The run folder of an engine: what other processes may read of it, and what a crash leaves.

``running/ID/`` in the data folder contains ``lock``, ``status.json`` (see `observe.status`) and checkpoints. The
process holds ``lock`` while it lives, and the kernel releases it however the process ends: so a folder with a free lock
has no process, whatever process ids, containers and restarts there were. A process that resumes a checkpoint moves it
into its own folder, which only one process can do.

Try it: ``ls "$STUDIO_HOME"/running`` during a run
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from studio.engine.checkpoints.checkpoint import SUFFIX
from studio.errors import CheckpointError
from studio.files import make_folder, scratch_folder, store_error, write_atomically
from studio.locks import is_locked, lock

RUNNING = "running"
LOCK = "lock"


class RunFolder:
    """The run folder of this process, created on the first write. Thread-safe."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._path: Path | None = None
        self._lock = -1
        self._making = threading.Lock()

    def path(self) -> Path:
        """The folder, created and locked. Raises StoreError."""
        with self._making:
            if self._path is None:
                self._path = self._make()
            return self._path

    def _make(self) -> Path:
        """Create it under a hidden name, lock it, then rename it."""
        running = make_folder(self.home / RUNNING)
        path = running / secrets.token_hex(4)
        try:
            with scratch_folder(running) as hidden:
                self._lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                lock(self._lock)
                os.rename(hidden, path)
        except OSError as error:
            raise store_error(path, "create the folder", error) from error
        return path

    def write(self, name: str, data: bytes, *, durable: bool) -> Path:
        """Write a file atomically. Raises StoreError."""
        return write_atomically(self.path() / name, data, durable=durable)

    def claim(self, checkpoint: Path) -> Path:
        """Move a checkpoint that a crash left into this folder. Raises CheckpointError if another process has it."""
        own = self.path() / checkpoint.name
        try:
            os.rename(checkpoint, own)
        except FileNotFoundError:
            raise CheckpointError(checkpoint, "another process has resumed it", hint="wait for that process") from None
        except OSError as error:
            raise store_error(checkpoint, "move", error) from error
        _sweep(checkpoint.parent)
        return own

    def close(self) -> None:
        """Delete the folder, unless it has checkpoints, and unlock it."""
        with self._making:
            path, self._path = self._path, None
            if path is not None:
                _sweep(path)
                os.close(self._lock)


def left(home: Path) -> Iterator[Path]:
    """Yield the checkpoints that crashes left, sorted; folders without checkpoints are deleted."""
    for folder in folders(home):
        if not alive(folder):
            _sweep(folder)
            yield from sorted(folder.glob(f"*{SUFFIX}"))


def folders(home: Path) -> list[Path]:
    """The run folders of all engines, living or not."""
    return sorted(path for path in (home / RUNNING).glob("[!.]*") if path.is_dir())


def alive(folder: Path) -> bool:
    """Whether the process of a folder lives."""
    return is_locked(folder / LOCK)


def _sweep(folder: Path) -> None:
    """Delete a folder without a process, unless it has checkpoints."""
    if not any(folder.glob(f"*{SUFFIX}")):
        shutil.rmtree(folder, ignore_errors=True)
