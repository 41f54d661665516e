"""The target of `-o`. Invalid targets are rejected before any work is done.

With --force a symbolic link is replaced; the file that it points to does not change.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from studio.destination import Destination
from studio.errors import FileTaken, StoreError, UsageError
from studio.files import make_folder, store_error


def choose(
    output: str | None, count: int, suffix: str, *, force: bool = False, others: Sequence[str] = ()
) -> Destination:
    """Resolve `-o` for `count` media with the file suffix `suffix`, or one of `others` for a single file; create the
    folder and check that it is writable. A file name without a suffix gets `suffix`.

    Raises UsageError for a path that does not fit, StoreError for one that exists or cannot be written to.
    """
    if output is None:
        return Destination()
    target = Path(output)
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, in a folder that may not be looked into, with a null character
        raise _unfit(target, error) from error
    ends = target.suffix.lower()
    if output.endswith(("/", os.sep)) or target.is_dir() or (count > 1 and not ends):
        make_folder(target)
        _try_out(target)
        return Destination(target, folder=True, force=force)
    if count > 1:
        raise UsageError(
            f"`-o {output}` names one file, but there are {count} outputs",
            hint=f"name a folder: `-o {target.with_suffix('')}/`",
        )
    if ends and ends != suffix and ends not in others:
        fitting = target.with_suffix(suffix)
        made = ", ".join((suffix, *others))
        raise UsageError(f"`-o {output}`: output files are {made}, not {ends}", hint=f"write `-o {fitting}`")
    if target.exists() and not target.is_file():
        raise StoreError(f"`{target}` is a device, a pipe or a socket, not a file", hint="name a file")
    if not ends:
        target = target.with_name(target.name + suffix)
    if os.path.lexists(target) and not force:
        raise FileTaken(target)
    _try_out(target.parent)
    return Destination(target, force=force)


def _unfit(target: Path, error: OSError | ValueError) -> StoreError:
    return store_error(target, "write", error if isinstance(error, OSError) else OSError(str(error)))


def _try_out(folder: Path) -> None:
    """Check before the work whether a file can be created in `folder`."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise store_error(folder, "write into the folder", error) from error
