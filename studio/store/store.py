"""Artifacts on disk, content-addressed: ``objects/ab/abcd….png`` and, beside it, ``abcd….json`` with the whole recipe.

The name is the media's identity (`Media.sha256`: for an image the hash of its pixels), so equal content is stored once,
with the first recipe. Every file is written atomically and verified against its name when read. Several processes can
use one folder.

Try it: ``python -c "import studio; print(studio.Studio().store.put(studio.Text('hello')))"``
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from studio.errors import MediaError, StoreError, UsageError
from studio.files import make_folder, read_limited, store_error, write_atomically
from studio.media import Audio, Embedding, Image, Label, Media, Text, Video
from studio.media.label import is_labelled
from studio.recipe import MAX_RECIPE_BYTES, Recipe
from studio.temporary import OLD_NAMES, sweep

MIN_PREFIX = 6
SWEPT = ".swept"  # its modification time is the time of the last sweep
KINDS: dict[str, type[Media]] = {each.suffix: each for each in (Text, Image, Video, Audio, Embedding)}


@dataclass(frozen=True)
class Artifact:
    """Stored media, or a file. `recipe` is None for media from outside; `label` is the AI label in the file, if it was
    read.
    """

    sha256: str
    path: Path
    media_type: str
    recipe: Recipe | None
    label: Label | None = None


@dataclass(frozen=True)
class Output:
    """A stored output in a list. `time_ns` is when it was first stored; `recipe` is None if it is damaged."""

    sha256: str
    media_type: str
    time_ns: int
    recipe: Recipe | None


class Store:
    """Artifacts under ``root/objects``; the folder is created with the first artifact."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._objects = self.root / "objects"
        self._swept = False

    def put(self, media: Media) -> Artifact:
        """Store media with their recipe, which is trusted from then on: media from outside must be given without one. A
        stored file gets the AI label that it lacks; only outputs, which have a recipe, can take it away.

        Raises StoreError if the folder is not writable or the disk is full.
        """
        self._sweep()
        stem = f"{self._objects}/{media.sha256[:2]}/{media.sha256}"
        path, side = Path(stem + media.suffix), Path(stem + ".json")
        make_folder(path.parent)
        recipe = self._kept_recipe(side, mendable=media.recipe is not None)
        stored = media if recipe is None else media.attach(recipe, None)
        if recipe is None and stored.recipe is not None:
            write_atomically(side, stored.recipe.to_json(indent=1).encode(), sync_folder=False)
        elif self._holds(path, stored, relabel=media.label is not None or media.recipe is not None):
            with suppress(OSError):
                os.utime(path)  # stored again: no workflow may remove it as an intermediate result
            return Artifact(media.sha256, path, media.media_type, recipe)
        write_atomically(path, stored.file_bytes())
        return Artifact(media.sha256, path, media.media_type, stored.recipe)

    def get(self, name: str) -> Artifact:
        """Find an artifact by its id or a prefix of it, and verify its content.

        Raises UsageError if the id is invalid, shorter than 6 characters or ambiguous, and StoreError if there is no
        such artifact, or it is damaged.
        """
        path = self._path(name)
        artifact = Artifact(path.stem, path, KINDS[path.suffix].media_type, self._recipe(path.with_suffix(".json")))
        if not self._intact(path):
            hint = "remove it, and regenerate it with `studio replay` of a copy, or from its recipe"
            raise StoreError(f"the artifact {path.stem} is damaged: `{path}` does not match its hash", hint=hint)
        return artifact

    def find(self, sha256: str) -> Artifact | None:
        """Return the artifact with this full hash, or None. Raises StoreError if it is damaged."""
        known = any(path.suffix in KINDS for path in (self._objects / sha256[:2]).glob(f"{sha256}.*"))
        return self.get(sha256) if known else None

    def path(self, sha256: str) -> Path | None:
        """The path of the artifact with this full hash, unverified, or None."""
        folder = self._objects / sha256[:2]
        return next((path for each in KINDS if (path := folder / (sha256 + each)).is_file()), None)

    def recipe(self, sha256: str) -> Recipe | None:
        """The recipe of the artifact with this full hash, or None; also if the artifact itself was discarded."""
        return self._recipe(self._objects / sha256[:2] / f"{sha256}.json")

    def discard(self, sha256: str, stamp: int) -> bool:
        """Remove an artifact, but not its recipe, if its modification time (ns) is still `stamp`; return whether."""
        path = self.path(sha256)
        try:
            if path is None or not path.with_suffix(".json").is_file() or path.stat().st_mtime_ns != stamp:
                return False
            path.unlink()
        except OSError:
            return False
        return True

    def open(self, name: str) -> Media:
        """Read an artifact's media, with recipe and path. Raises as `get` does."""
        artifact = self.get(name)
        return KINDS[artifact.path.suffix].open(artifact.path).attach(artifact.recipe, artifact.path)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of all artifacts, in order."""
        return iter(sorted(path.stem for path in self._objects.glob("??/*") if path.suffix in KINDS))

    def outputs(self, kind: str | None = None, limit: int = 100, before: tuple[int, str] | None = None) -> list[Output]:
        """The artifacts that have a recipe, the latest first: of one kind, or of all. `before` is the time and the hash
        of the last one of the page before. Raises StoreError if the folder cannot be read.
        """
        found: list[Output] = []
        for time_ns, sha256 in sorted(self._recipes(), reverse=True):
            path = self.path(sha256) if before is None or (time_ns, sha256) < before else None
            if path is None or kind not in (None, KINDS[path.suffix].kind):
                continue
            try:
                recipe = self.recipe(sha256)
            except StoreError:
                recipe = None
            found.append(Output(sha256, KINDS[path.suffix].media_type, time_ns, recipe))
            if len(found) == limit:
                break
        return found

    def _recipes(self) -> Iterator[tuple[int, str]]:
        """The time and the hash of each stored recipe."""
        try:
            for folder in self._objects.glob("??"):
                with os.scandir(folder) as entries:
                    for each in entries:
                        if each.name.endswith(".json") and len(each.name) == 64 + len(".json"):
                            yield each.stat().st_mtime_ns, each.name[:64]
        except OSError as error:
            raise store_error(self._objects, "read", error) from error

    def _sweep(self) -> None:
        """Remove temporary files of killed processes, once, in folders that changed since the last sweep."""
        if self._swept:
            return
        self._swept = True
        mark, now = self._objects / SWEPT, time.time()
        try:
            since = mark.stat().st_mtime if mark.exists() else 0.0
            since = since - 2 if since < now else 0.0  # file systems round times, and clocks are set back
            with os.scandir(self._objects) as entries:
                changed = [Path(each) for each in entries if each.is_dir() and each.stat().st_mtime >= since]
            others = [folder for folder in changed if sweep(folder, OLD_NAMES)]
            if not others:  # else temporary files of running processes would not be found again
                mark.touch()
                os.utime(mark, (now, now))
        except OSError:
            return  # no store yet, or not writable, which the next write reports

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{1,64}", name):
            raise UsageError(f"`{name}` is not an artifact id", hint="an id is 6 to 64 characters of 0-9 and a-f")
        if len(name) == 64 and (whole := self.path(name)) is not None:
            return whole
        if len(name) < MIN_PREFIX:
            raise UsageError(f"the id `{name}` is too short", hint=f"give at least {MIN_PREFIX} characters")
        try:
            found = sorted(path for path in (self._objects / name[:2]).glob(f"{name}*") if path.suffix in KINDS)
        except OSError as error:
            raise store_error(self._objects, "read", error) from error
        if not found:
            raise StoreError(f"the store has no artifact `{name}`", hint=f"searched in `{self._objects}`")
        if len(found) > 1:
            several = ", ".join(path.stem[:16] for path in found[:8])
            message = f"the id `{name}` is ambiguous: {len(found)} artifacts match: {several}"
            raise UsageError(message, hint="give more characters")
        return found[0]

    def _intact(self, path: Path) -> bool:
        """Whether the file's content matches the hash in its name."""
        kind = KINDS[path.suffix]
        try:
            return kind.identify(read_limited(path, kind.max_file_bytes)) == path.stem
        except MediaError:
            return False

    @staticmethod
    def _holds(path: Path, media: Media, *, relabel: bool) -> bool:
        """Whether the file exists and has the content of these media, and with `relabel` a label if they have one."""
        try:
            if not path.exists():
                return False
            file = read_limited(path, media.max_file_bytes)
            if relabel and media.has_label and is_labelled(file) != (media.label is not None):
                return False
            return media.matches(file)
        except MediaError:
            return False

    def _kept_recipe(self, side: Path, *, mendable: bool) -> Recipe | None:
        """The existing recipe; None for a damaged one if it can be replaced."""
        try:
            return self._recipe(side)
        except StoreError:
            if mendable:
                return None
            raise

    def _recipe(self, side: Path) -> Recipe | None:
        if not os.path.exists(side):
            return None
        try:
            return Recipe.parse(read_limited(side, MAX_RECIPE_BYTES))
        except MediaError as error:
            raise StoreError(f"the recipe of the artifact {side.stem} is damaged: `{side}`: {error.message}") from error
