"""Models from elsewhere: pulled from a hub, a package or a folder, pinned by sha256, found again by name.

The host calls `locate` with what the user named: a short name, a source, a folder or a file. It says in which data
folder that looks (`home`), and whether a path may be named at all (`no_paths_but`): a recipe or workflow from elsewhere
may name only what was pulled. Nothing is fetched but by `Models.pull` (`studio models pull`). It knows nothing of what
a model is for.

Try it: ``studio models pull smollm2``
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from studio.errors import ModelError
from studio.models.library import LIMIT, Models
from studio.models.lock import Entry, Pin
from studio.models.source import Known, Source, is_source, known, parse
from studio.spec import ModelRef

__all__ = [
    "LIMIT",
    "Entry",
    "Known",
    "Models",
    "Pin",
    "Source",
    "home",
    "is_source",
    "known",
    "locate",
    "no_paths_but",
    "parse",
    "path",
]

_home: ContextVar[Path | None] = ContextVar("studio_models_home", default=None)
_paths: ContextVar[frozenset[str] | None] = ContextVar("studio_models_paths", default=None)


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """Let `path` look into this data folder meanwhile, in this thread; a Studio does so with its own."""
    token = _home.set(folder)
    try:
        yield
    finally:
        _home.reset(token)


@contextmanager
def no_paths_but(given: Collection[str] = ()) -> Iterator[None]:
    """Let `path` refuse paths meanwhile, in this thread, but for these: those that the user named himself."""
    token = _paths.set(frozenset(given))
    try:
        yield
    finally:
        _paths.reset(token)


def path(what: str | Path) -> Path:
    """Where a model is (see `Models.path`), in the data folder of the Studio that asks, else of the environment.

    Raises ModelError too for a path that a file from elsewhere names (see `no_paths_but`).
    """
    given = _paths.get()
    if given is not None and not is_source(str(what)) and str(what) not in given:
        hint = "`studio models pull file:PATH` takes a model in; a workflow may be given a path with `-p`"
        raise ModelError(f"the file names the model by a path, `{str(what)[:200]}`, which is not opened", hint=hint)
    return Models(_home.get()).path(what)


def locate(ref: ModelRef) -> ModelRef:
    """The ref with the absolute path of its weights as its source, and with the revision of a pulled model.

    Raises as `path` does, and ModelError where another revision was pulled than the ref names.
    """
    if not ref.source:
        return ref
    found = path(ref.source).absolute()
    revision = Models(_home.get()).revision(ref.source)
    if ref.revision and ref.revision != revision:
        message = f"`{ref.source}` is at revision `{revision or 'none'}`, not `{ref.revision}`"
        raise ModelError(message, hint=f"`studio models pull {ref.source}` fetches what is pinned")
    return ref.model_copy(update={"source": str(found), "revision": revision})
