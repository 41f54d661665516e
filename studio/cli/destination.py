"""Where `-o` puts what is made. Everything that can be refused is refused before any work is done.

It knows media only by their suffix and bytes. No file is overwritten without --force, and none is ever half-written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import StoreError, UsageError
from studio.files import make_folder, store_error

if TYPE_CHECKING:
    from studio.media import Media


@dataclass(frozen=True)
class Destination:
    """Nowhere but the store (`target` is None), one file, or a folder of files named by generator, seed and id."""

    target: Path | None = None
    folder: bool = False
    force: bool = False

    def save(self, media: Media, generator: str, seed: int) -> Path:
        """Write `media` and return its path; without a target that is its path in the store."""
        return self.save_as(media, f"{generator}-{seed}-{media.sha256[:8]}")

    def save_as(self, media: Media, name: str) -> Path:
        """The same, with a name of its own for the file in a folder; its suffix is the media's."""
        if self.target is None:
            assert media.path is not None
            return media.path
        if not self.folder:
            return media.save(self.target)
        path = self.target / f"{name}{media.suffix}"
        if path.exists() and not self.force and path.read_bytes() != media.file_bytes():
            raise _exists(path)
        return media.save(path)


def choose(
    output: str | None, count: int, suffix: str, *, force: bool = False, others: Sequence[str] = ()
) -> Destination:
    """Decide where `-o` points to, for `count` media whose files end in `suffix`, or in one of the `others` where one
    file is named; make and try out the folder.

    Raises UsageError for a path that does not fit, StoreError for one that exists or cannot be written to.
    """
    if output is None:
        return Destination()
    target = Path(output)
    ends = target.suffix.lower()
    if output.endswith(("/", os.sep)) or target.is_dir() or (count > 1 and not ends):
        make_folder(target)
        _try_out(target)
        return Destination(target, folder=True, force=force)
    if count > 1:
        raise UsageError(
            f"`-o {output}` names one file, but {count} are to be made",
            hint=f"name a folder: `-o {target.with_suffix('')}/`",
        )
    if ends and ends != suffix and ends not in others:
        fitting = target.with_suffix(suffix)
        made = ", ".join((suffix, *others))
        raise UsageError(f"`-o {output}`: this makes {made} files, not {ends}", hint=f"write `-o {fitting}`")
    if target.exists() and not force:
        raise _exists(target)
    _try_out(target.parent)
    return Destination(target, force=force)


def _exists(path: Path) -> StoreError:
    return StoreError(f"`{path}` exists already", hint="choose another name, or give --force to overwrite it")


def _try_out(folder: Path) -> None:
    """Find out now, not after the work, whether a file can be made in `folder`."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise store_error(folder, "write into the folder", error) from error
