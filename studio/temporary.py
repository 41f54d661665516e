"""Temporary files and folders that are cleaned up after a kill: naming, locking, publishing, sweeping.

On Linux a new file has no name until it is complete (``O_TMPFILE``, then ``linkat``). Elsewhere, and while it replaces
another file, its name is ``.studio.HEX.tmp`` and it is locked. The lock ends with its process, so a file that can be
locked is stale. Used only by `studio.files`.

Try it: ``python -c "from studio.temporary import sweep; print(sweep('.'))"``
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from studio.locks import lock, try_lock

NAMES = re.compile(r"\.studio\.[0-9a-f]{12}\.tmp")
"""What temporary files and folders are called."""

OLD_NAMES = re.compile(r"\..*\.[0-9a-f]{12}\.tmp|\..*\.part")
"""The same, and as earlier versions called them: for folders that only Studio writes to."""

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOENT}
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_swept: set[str] = set()  # folders that this process has swept
_sweeping = threading.Lock()


class Temporary:
    """A file without a name, or with a temporary one, locked, if the file system has no unnamed files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name: Path | None = None
        self.descriptor = self._unnamed()
        if self.descriptor < 0:
            self.name, self.descriptor = locked(folder, _create_file)

    def _unnamed(self) -> int:
        """An open file without a name; -1 if the file system does not support that."""
        flag = getattr(os, "O_TMPFILE", 0)
        if not flag or not _has_proc():
            return -1
        try:
            return os.open(self.folder, flag | os.O_RDWR, 0o666)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return -1
            raise

    def publish(self, path: Path, overwrite: bool) -> None:
        """Give the file its name. Raises OSError; FileExistsError if the name exists and may not be overwritten."""
        if self.name is None:
            try:
                self._link(path)
                return
            except FileExistsError:
                _check_replaceable(path)
                if not overwrite:
                    raise
            lock(self.descriptor)  # before it has a name by which another process could take it for stale
            name = self.folder / _temporary_name()
            self._link(name)
            self.name = name
        else:
            _check_replaceable(path)
        if overwrite:
            os.replace(self.name, path)
            self.name = None
        else:
            self._link_or_reserve(path)

    def _link(self, path: Path) -> None:
        # With a folder's descriptor, of no meaning here, Python calls linkat and follows the link in /proc.
        os.link(f"/proc/self/fd/{self.descriptor}", path, src_dir_fd=self.descriptor, follow_symlinks=True)

    def _link_or_reserve(self, path: Path) -> None:
        """Take a new name. Without hard links (FAT) a kill in between leaves an empty file with that name."""
        assert self.name is not None
        try:
            os.link(self.name, path)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(self.name, path)
            self.name = None

    def close(self) -> None:
        """Remove a remaining temporary name, and unlock."""
        try:
            if self.name is not None:
                self.name.unlink(missing_ok=True)
        finally:
            os.close(self.descriptor)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None:
        if not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
    aside = other.with_name(f"{other.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


@cache
def _has_proc() -> bool:
    """Whether an open file can be given a name by its descriptor."""
    return os.path.isdir("/proc/self/fd")


def _check_replaceable(path: Path) -> None:
    """Raise OSError if `path` is a folder, a device, a pipe or a socket."""
    if path.exists() and not path.is_file():
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(code, os.strerror(code) if path.is_dir() else "it is a device, a pipe or a socket")


def _temporary_name() -> str:
    return f".studio.{os.urandom(6).hex()}.tmp"


def _create_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def create_folder(path: Path, mode: int = 0o777) -> int:
    """Create and open a folder."""
    os.mkdir(path, mode)
    return os.open(path, os.O_RDONLY)


def locked(folder: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create a file or folder with a temporary name, and lock it before another process can consider it stale."""
    while True:
        path = folder / _temporary_name()
        descriptor = create(path)
        lock(descriptor)
        if _is_there(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another process removed it before it was locked


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep_once(folder: Path) -> None:
    """Sweep a folder that this process has not written to yet."""
    key = os.path.abspath(folder)
    with _sweeping:
        if key in _swept:
            return
        _swept.add(key)
    sweep(folder)


def sweep(folder: Path, names: re.Pattern[str] = NAMES) -> bool:
    """Remove the temporary files and folders in `folder` whose process has ended; return whether there are others."""
    try:
        found = [folder / name for name in os.listdir(folder) if names.fullmatch(name)]
    except OSError:  # the folder is missing or cannot be read, which a write to it reports
        return False
    held = [path for path in found if not _swept_away(path)]
    return bool(held)


def _swept_away(path: Path) -> bool:
    """Remove a file or folder if its lock is free; return whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:  # a link, or another user's
        return False
    try:
        if not try_lock(descriptor):
            return False
        if _is_there(path, descriptor):
            folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            with suppress(OSError):  # another user's: it stays
                shutil.rmtree(path) if folder else path.unlink(missing_ok=True)
        return not os.path.lexists(path)
    finally:
        os.close(descriptor)
