"""The folder of a running engine: what others may see of it, and what a crash leaves behind.

``running/ID/`` under the data folder holds ``lock``, ``status.json`` (see `status`) and checkpoints. The process keeps
``lock`` locked as long as it lives, and the kernel unlocks it however the process ends: so a folder whose lock is free
belongs to nobody any more, whatever process ids, containers and restarts there were in between. Whoever takes up a
checkpoint moves it into a folder of its own, which only one can do. This module knows nothing of what the files say.

Try it: ``ls "$STUDIO_HOME"/running`` while something is made
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

ROOM = "running"
LOCK = "lock"


class EngineFolder:
    """A folder of this process's own, made when first written to. Safe to use from several threads."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._path: Path | None = None
        self._lock = -1
        self._making = threading.Lock()

    def path(self) -> Path:
        """The folder, made and locked. Raises StoreError."""
        with self._making:
            if self._path is None:
                self._path = self._make()
            return self._path

    def _make(self) -> Path:
        """Make it under another name, lock it, and only then let others see it."""
        import fcntl

        room = make_folder(self.home / ROOM)
        path = room / secrets.token_hex(4)
        try:
            with scratch_folder(room) as hidden:
                self._lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                os.rename(hidden, path)
        except OSError as error:
            raise store_error(path, "create the folder", error) from error
        return path

    def write(self, name: str, data: bytes, *, durable: bool) -> Path:
        """Write a file whole or not at all. Raises StoreError."""
        return write_atomically(self.path() / name, data, durable=durable)

    def claim(self, checkpoint: Path) -> Path:
        """Move a checkpoint that a crash left into this folder. Raises CheckpointError if another was faster."""
        own = self.path() / checkpoint.name
        try:
            os.rename(checkpoint, own)
        except FileNotFoundError:
            raise CheckpointError(checkpoint, "another process has taken it up", hint="wait for that one") from None
        except OSError as error:
            raise store_error(checkpoint, "move", error) from error
        _sweep(checkpoint.parent)
        return own

    def close(self) -> None:
        """Remove the folder, or what is not a checkpoint, and unlock it."""
        with self._making:
            path, self._path = self._path, None
            if path is not None:
                _sweep(path)
                os.close(self._lock)


def left(home: Path) -> Iterator[Path]:
    """Yield the checkpoints that crashes left, in order; folders that hold none are removed on the way."""
    for folder in folders(home):
        if not alive(folder):
            _sweep(folder)
            yield from sorted(folder.glob(f"*{SUFFIX}"))


def folders(home: Path) -> list[Path]:
    """The folders of engines, living or not."""
    return sorted(path for path in (home / ROOM).glob("[!.]*") if path.is_dir())


def alive(folder: Path) -> bool:
    """Whether the process that made the folder lives. Lookers share the lock, and do not disturb one another."""
    import fcntl

    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _sweep(folder: Path) -> None:
    """Remove a folder of nobody, unless there are checkpoints in it."""
    if not any(folder.glob(f"*{SUFFIX}")):
        shutil.rmtree(folder, ignore_errors=True)
