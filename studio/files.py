"""Reading and writing files atomically, and safely with untrusted files.

All files are written through this module: `write_atomically` for bytes, `new_file` for streams, `new_folder` for a
model's folder. Readers see either the old content or all of the new; `studio.temporary` explains how, and why a killed
process leaves nothing behind.

Try it: ``python -c "from studio.files import write_atomically; write_atomically('a.txt', b'hello')"``
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from studio.errors import FileTaken, MediaError, StoreError
from studio.temporary import Temporary, create_folder, exchange, locked, sweep_once

_ELSEWHERE = "choose another folder with `-o`, `--home` or, in training, `--work`"
_REMEDY = {
    errno.ENOSPC: f"the disk is full: free some space, or {_ELSEWHERE}",
    errno.EDQUOT: f"the quota is used up: free some space, or {_ELSEWHERE}",
    errno.EFBIG: "the file is larger than the system allows (`ulimit -f`): raise the limit",
    errno.EACCES: f"you have no permission to write to the folder: {_ELSEWHERE}",
    errno.EPERM: f"you have no permission to write to the folder: {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder: name a file in it",
    errno.ENOENT: "the folder does not exist: create it first",
    errno.ENAMETOOLONG: "choose a shorter name",
}

_NOT_A_FILE = "it is {}, not a file"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # opening a pipe waits for its writer otherwise


def store_error(path: Path, what: str, error: OSError) -> StoreError:
    """Turn an OSError into a StoreError that names the path, the reason and the remedy."""
    reason = error.strerror or str(error) or type(error).__name__
    return StoreError(f"cannot {what} `{path}`: {reason}", hint=_REMEDY.get(error.errno or 0))


def write_atomically(
    path: Path | str,
    data: bytes,
    *,
    overwrite: bool = True,
    durable: bool = True,
    sync_folder: bool = True,
    private: bool = False,
) -> Path:
    """Write `data` to `path`, whole or not at all; return the path. See `new_file`."""
    with new_file(path, overwrite=overwrite, durable=durable, sync_folder=sync_folder, private=private) as file:
        file.write(data)
    return Path(path)


@contextmanager
def new_file(
    path: Path | str,
    *,
    overwrite: bool = True,
    durable: bool = True,
    sync_folder: bool = True,
    private: bool = False,
) -> Iterator[BinaryIO]:
    """Yield a file to write to, which is renamed to `path` when the block ends; on an error nothing is left.

    Args:
        overwrite: replace an existing file. If false, exactly one of several concurrent writers succeeds.
        durable: fsync the file. Without it, the file survives a crash of the process, but maybe not of the machine.
        sync_folder: fsync the folder too; not needed if another file is written there next.
        private: only the owner can read the file (mode 600), from the beginning.

    A symbolic link at `path` is replaced, never followed.

    Raises StoreError, also if `path` is a device, a pipe or a folder, and FileTaken if it exists and `overwrite` is
    false.
    """
    path = Path(path)
    folder = path.parent
    try:
        sweep_once(folder)
        temporary = Temporary(folder)
        try:
            if private:
                os.fchmod(temporary.descriptor, 0o600)
            with os.fdopen(os.dup(temporary.descriptor), "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.publish(path, overwrite)
        finally:
            temporary.close()
        if durable and sync_folder:
            _sync_folder(folder)
    except FileExistsError as error:
        raise FileTaken(path) from error
    except OSError as error:
        raise store_error(path, "write", error) from error


@contextmanager
def scratch_folder(parent: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a temporary folder in `parent`; if the process is killed, the next writer removes it."""
    sweep_once(parent)
    path, descriptor = locked(parent, partial(create_folder, mode=mode))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def new_folder(path: Path | str, *, overwrite: bool = True, durable: bool = True) -> Iterator[Path]:
    """Yield a folder to fill, which is renamed to `path` when the block ends, replacing an existing folder.

    On Linux the two are exchanged in one call. Elsewhere a kill in between can leave the old one as `NAME.before`.
    Without `overwrite` a non-empty folder is not replaced. Raises StoreError, also for a full disk that a library
    written in Rust reports.
    """
    path = Path(os.path.realpath(path))
    make_folder(path.parent)
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file has that name")
        with scratch_folder(path.parent) as part:
            yield part
            if durable:
                _sync_tree(part)
            if overwrite and path.exists():
                exchange(part, path)
            else:
                os.rename(part, path)
            if durable:
                _sync_folder(path.parent)
    except Exception as error:
        found = _system_error(error)
        if found is None:
            raise
        raise store_error(path, "write", found) from error


def _system_error(error: Exception) -> OSError | None:
    """The OSError that this is, or that the message of a library written in Rust contains."""
    if isinstance(error, OSError):
        return error
    match = re.search(r"\(os error (\d+)\)|\bOs \{ code: (\d+)", str(error))
    if match is None or isinstance(error, StoreError):
        return None
    code = int(match[1] or match[2])
    return OSError(code, os.strerror(code))


def expanded(path: Path | str) -> Path:
    """The path with a leading ``~`` or ``~user`` expanded; that of an unknown user is left as it is."""
    return Path(os.path.expanduser(path))


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, if they are missing. Raises StoreError."""
    if os.path.isdir(path):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StoreError(
            f"cannot create the folder `{path}`: a file or a broken link has that name", hint="choose another name"
        ) from error
    except OSError as error:
        raise store_error(path, "create the folder", error) from error
    return path


def read_limited(path: Path | str, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes. Raises MediaError."""
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise MediaError(f"cannot read `{path}`: {error.strerror or error}") from error
    if len(data) > limit:
        raise MediaError(f"`{path}` is larger than {limit:,} bytes, the limit")
    return data


def read_regular(path: Path | str, most: int) -> bytes:
    """The bytes of a regular file. Raises OSError, also for one of more than `most` bytes."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes, the limit", str(path))
    return data


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading, without blocking. Raises OSError, also for a pipe, device or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, "a file name has no NUL character") from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.EINVAL, _NOT_A_FILE.format("a socket or device"), str(path)) from error
        raise
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path | str) -> None:
    """For libraries that open a path themselves. Raises OSError unless a regular file has that name."""
    try:
        _check_regular(path, os.stat(path).st_mode)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, "a file name has no NUL character") from error


def _check_regular(path: Path | str, mode: int) -> None:
    """Raise OSError unless `mode` is that of a regular file."""
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, _NOT_A_FILE.format(_KINDS.get(stat.S_IFMT(mode), "a device")), str(path))


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; only POSIX lets a folder be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Push the files below a folder to the disk, and their names."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(place))
