"""Where an output goes besides the store: a file, or a folder. It has a JSON form, so that it outlives a process.

No file is overwritten unless that was asked for, even if another process writes the same name at the same time, and
files are written atomically.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

from studio.errors import FileTaken, MediaError, StoreError, UsageError
from studio.files import make_folder

if TYPE_CHECKING:
    from pydantic import JsonValue

    from studio.media import Media
    from studio.media.signing import Signer


@dataclass(frozen=True)
class Destination:
    """The store only (`target` is None), one file, or a folder of files named by generator, seed and id; signed by the
    `signer`, if there is one.
    """

    target: Path | None = None
    folder: bool = False
    force: bool = False
    signer: Signer | None = None

    def as_json(self, home: Path) -> dict[str, JsonValue] | None:
        """The JSON form, for another process that uses the data folder `home`, which is created if necessary. None for
        the store, and if the folder cannot be created: then no request is saved in it either.
        """
        if self.target is None:
            return None
        try:
            make_folder(home)
        except StoreError:
            return None
        made: dict[str, JsonValue] = {"folder": self.folder, "force": self.force, "home": _mark(home)}
        if self.signer:
            made |= {"sign": _quoted(self.signer.certificate), "key": _quoted(self.signer.key)}
        return made | {"path": _quoted(self.target)}

    @classmethod
    def from_json(cls, saved: Mapping[str, JsonValue] | None, home: Path) -> Self:
        """Read the result of `as_json`. It comes from a file in the data folder, so it is valid only in the folder in
        which it was written: an untrusted folder cannot set output paths. Raises UsageError.
        """
        if saved is None:
            return cls()
        from studio.media.signing import Signer

        place, folder, force = saved.get("path"), saved.get("folder"), saved.get("force")
        paths = (place, saved.get("sign", ""), saved.get("key", ""))
        if not isinstance(folder, bool) or not isinstance(force, bool):
            raise _damaged()
        path, certificate, key = (_unquoted(each) for each in paths)
        if saved.get("home") != _mark(home):
            hint = f"the output goes to the store, not to `{path}`"
            raise UsageError("`-o` of a request saved in another data folder is ignored", hint=hint)
        return cls(path, folder, force, Signer(certificate, key) if "sign" in saved else None)

    def save(self, media: Media, generator: str, seed: int) -> Path:
        """Write `media` and return its path; without a target return its path in the store."""
        return self.save_as(media, f"{generator}-{seed}-{media.sha256[:8]}")

    def save_as(self, media: Media, name: str, *, again: bool = False) -> Path:
        """The same with another file name, without suffix, in a folder. `again`: a file with the same media counts as
        written, as after a crash.
        """
        if self.target is None:
            assert media.path is not None
            return media.path
        path = self.target / f"{name}{media.suffix}" if self.folder else self.target
        try:
            return media.save(path, overwrite=self.force, signer=self.signer)
        except FileTaken:
            if path.is_file() and (
                (self.folder and path.read_bytes() == media.file_bytes()) or (again and _holds(path, media))
            ):
                return path
            raise _with_store(media, FileTaken(path)) from None
        except StoreError as error:
            raise _with_store(media, error) from None


def _quoted(path: Path) -> str:
    """A path as ASCII, as a name need not be text."""
    return quote_from_bytes(os.fsencode(path.absolute()))


def _unquoted(saved: JsonValue) -> Path:
    if not isinstance(saved, str):
        raise _damaged()
    return Path(os.fsdecode(unquote_to_bytes(saved)))


def _damaged() -> UsageError:
    return UsageError("the saved request's `destination` is damaged", hint="its media go to the store")


def _holds(path: Path, media: Media) -> bool:
    """Whether a file has these media, whatever its recipe says."""
    try:
        return type(media).open(path) == media
    except MediaError:
        return False


def _mark(home: Path) -> str:
    """A mark that differs for copies of this folder and for folders of other machines."""
    return f"{home.stat().st_ino} {quote_from_bytes(os.fsencode(home.resolve()))}"


def _with_store(media: Media, error: StoreError) -> StoreError:
    """The error, with the path of the media in the store."""
    if media.path is not None:
        kept = f"the output is stored as `{media.path}`"
        error.hint = f"{error.hint}; {kept}" if error.hint else kept
    return error
