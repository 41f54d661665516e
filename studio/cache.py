"""A cache in an SQLite file: if the file is damaged, it is deleted and recreated, and the work continues.

One file in WAL mode, so that several processes can use it and a crash costs at most the last entries. Callers validate
the entries that they read.

Try it: ``pytest tests/studio/test_cache.py``
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from studio.errors import StoreError
from studio.files import make_folder, store_error

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_T = TypeVar("_T")


class SqliteCache:
    """The file `path` with the tables of `schema`. A context manager; safe to use from several threads and processes.

    `renewed` says whether the file was damaged and recreated. Raises StoreError if it cannot be used at all.
    """

    def __init__(self, path: Path, schema: str) -> None:
        make_folder(path.parent)
        self.path, self.renewed = path, False
        self._schema = schema
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        self.transact(lambda _: None)

    def transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` in one transaction and return its result; `work` is repeated if the file had to be recreated.

        Raises StoreError, which names the file.
        """
        with self._lock:
            try:
                try:
                    return self._once(work)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a damaged name, in SQLite's own message
                    if not isinstance(error, UnicodeDecodeError) and not _is_damage(error, self.path):
                        raise
                    self._renew()
                    return self._once(work)
            except OSError as error:
                raise store_error(self.path, "use", error) from None
            except sqlite3.Error as error:
                if code := _system_error(error, self.path.parent):
                    raise store_error(self.path, "write", OSError(code, os.strerror(code))) from None
                hint = "it may be in use, or its disk may fail: try again, or choose another data folder with `--home`"
                raise StoreError(f"cannot use `{self.path}`: {error}", hint=hint) from None

    def _once(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._file is None:
            file = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._file = file
            file.execute("pragma journal_mode=wal")
            file.execute("pragma synchronous=normal")
            file.executescript(self._schema)
        self._file.execute("begin immediate")
        try:
            done = work(self._file)
            self._file.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):
                self._file.execute("rollback")
            raise
        return done

    def _renew(self) -> None:
        self.renewed = True
        self._close()
        for suffix in ("-wal", "-shm", ""):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(sqlite3.Error):
                file.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Whether the file is damaged. A damaged header can also make SQLite take a writable file for read-only."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)
    mounted = not os.statvfs(path.parent).f_flag & os.ST_RDONLY
    return code in _DAMAGED or (code == sqlite3.SQLITE_READONLY and writable and mounted)


def _system_error(error: sqlite3.Error, folder: Path) -> int:
    """The `errno` if the folder's disk is full or not writable; 0 for other errors."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    disk = os.statvfs(folder)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and not disk.f_bavail):
        return errno.ENOSPC
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    return 0 if os.access(folder, os.W_OK | os.X_OK) and code != sqlite3.SQLITE_READONLY else errno.EACCES
