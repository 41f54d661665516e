"""Models from elsewhere: pulled from a hub, a package or a folder, pinned by sha256, found again by name.

Generators call `path` with what the user named: a short name, a source, a folder or a file. The host says in which data
folder that looks (`home`). Nothing is fetched but by `Models.pull` (`studio models pull`). It knows nothing of what a
model is for.

Try it: ``studio models pull smollm2``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from studio.models.library import LIMIT, Models
from studio.models.lock import Entry, Pin
from studio.models.source import Known, Source, is_source, known, parse

__all__ = ["LIMIT", "Entry", "Known", "Models", "Pin", "Source", "home", "is_source", "known", "parse", "path"]

_home: ContextVar[Path | None] = ContextVar("studio_models_home", default=None)


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """Let `path` look into this data folder meanwhile, in this thread; a Studio does so with its own."""
    token = _home.set(folder)
    try:
        yield
    finally:
        _home.reset(token)


def path(what: str | Path) -> Path:
    """Where a model is (see `Models.path`), in the data folder of the Studio that asks, else of the environment."""
    return Models(_home.get()).path(what)
