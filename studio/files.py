"""Writing and reading files so that a crash, a full disk or a hostile file costs nothing.

`write_atomically` shows either the old file or the whole new one, never a part: temporary file in the same folder,
fsync, `os.replace`, fsync of the folder; the temporary file is removed whatever happens. This module knows nothing of
media or stores.

Try it: ``python -c "from studio.files import write_atomically; write_atomically('a.txt', b'hello')"``
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from studio.errors import MediaError, StoreError

_REMEDY = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder with `-o` or `--home`",
    errno.EDQUOT: "the quota is used up: free some space, or choose another folder with `-o` or `--home`",
    errno.EACCES: "the folder is not yours to write to: choose another with `-o` or `--home`",
    errno.EPERM: "the folder is not yours to write to: choose another with `-o` or `--home`",
    errno.EROFS: "the file system is read-only: choose another folder with `-o` or `--home`",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder: name a file in it",
    errno.ENOENT: "the folder does not exist: create it first",
}


def store_error(path: Path, what: str, error: OSError) -> StoreError:
    """Turn an OSError into a StoreError that names the path, the reason and the remedy."""
    reason = error.strerror or str(error) or type(error).__name__
    return StoreError(f"cannot {what} `{path}`: {reason}", hint=_REMEDY.get(error.errno or 0))


def write_atomically(path: Path | str, data: bytes, *, durable: bool = True, sync_folder: bool = True) -> Path:
    """Write `data` to `path`, whole or not at all; return the path. Raises StoreError; leaves no temporary file.

    What is not `durable` is not pushed to the disk: it outlives the process, and may not outlive the machine. Without
    `sync_folder` its name is not: for a file beside which another is written next.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable and sync_folder:
            _sync_folder(path.parent)
    except OSError as error:
        raise store_error(path, "write", error) from error
    return path


def expanded(path: Path | str) -> Path:
    """The path with a leading ``~`` or ``~user`` as a shell reads it: one of a user who is not there stays as it is."""
    return Path(os.path.expanduser(path))


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, if they are missing. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(path, "create the folder", error) from error
    return path


def read_limited(path: Path | str, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes. Raises MediaError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise MediaError(f"cannot read `{path}`: {error.strerror or error}") from error
    if len(data) > limit:
        raise MediaError(f"`{path}` is larger than {limit:,} bytes, the most that is read")
    return data


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; only POSIX lets a folder be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
