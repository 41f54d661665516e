"""The target of `-o`. Invalid targets are rejected before any work is done.

No file is overwritten without --force, even if another command writes the same name at the same time, and files are
written atomically. With --force a symbolic link is replaced; the file that it points to does not change.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

from studio.errors import FileTaken, StoreError, UsageError
from studio.files import make_folder, store_error

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

    def save_as(self, media: Media, name: str) -> Path:
        """The same with another file name, without suffix, in a folder."""
        if self.target is None:
            assert media.path is not None
            return media.path
        path = self.target / f"{name}{media.suffix}" if self.folder else self.target
        try:
            return media.save(path, overwrite=self.force, signer=self.signer)
        except FileTaken:
            if self.folder and path.is_file() and path.read_bytes() == media.file_bytes():
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


def _mark(home: Path) -> str:
    """A mark that differs for copies of this folder and for folders of other machines."""
    return f"{home.stat().st_ino} {quote_from_bytes(os.fsencode(home.resolve()))}"


def _with_store(media: Media, error: StoreError) -> StoreError:
    """The error, with the path of the media in the store."""
    if media.path is not None:
        kept = f"the output is stored as `{media.path}`"
        error.hint = f"{error.hint}; {kept}" if error.hint else kept
    return error


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
