"""Downloaded models: pulled from a hub, a package or a folder, pinned by sha256, and found by name.

The host calls `locate` with the user's model: a short name, a source, a folder or a file. `home` sets the data folder
to search, and `no_paths_but` restricts which paths are allowed: a recipe or workflow from elsewhere can name only
downloaded models. Nothing is downloaded except by `Models.pull` (`studio models pull`).

Try it: ``studio models pull smollm2``
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from studio.errors import ModelError
from studio.models.library import LIMIT, Models
from studio.models.lock import Pin, PinnedModel
from studio.models.source import Known, ModelSource, is_source, known, parse
from studio.spec import ModelRef, source_and_weight

__all__ = [
    "LIMIT",
    "Known",
    "ModelSource",
    "Models",
    "Pin",
    "PinnedModel",
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
    """Set the data folder that `path` searches, within the context and in this thread."""
    token = _home.set(folder)
    try:
        yield
    finally:
        _home.reset(token)


@contextmanager
def no_paths_but(given: Collection[str] = ()) -> Iterator[None]:
    """Let `path` accept only these paths, which the user named, also with the weight of a LoRA, within the context and
    in this thread. Within another such context only those that both name are accepted.
    """
    named, outer = frozenset(given) | {source_and_weight(each)[0] for each in given}, _paths.get()
    token = _paths.set(named if outer is None else named & outer)
    try:
        yield
    finally:
        _paths.reset(token)


def path(what: str | Path) -> Path:
    """The path of a model (see `Models.path`), in the data folder of the current Studio, else of the environment.

    Also raises ModelError for a path that an untrusted file names (see `no_paths_but`).
    """
    given = _paths.get()
    if given is not None and not is_source(str(what)) and str(what) not in given:
        hint = "add the model with `studio models pull file:PATH`, or pass its path to a workflow with `-p`"
        raise ModelError(f"the file names a model by its path, which is not allowed: `{str(what)[:200]}`", hint=hint)
    return Models(_home.get()).path(what)


def locate(ref: ModelRef) -> ModelRef:
    """The ref with the absolute path of its weights as source, and the revision of a downloaded model.

    Raises as `path` does, and ModelError if the ref names another revision than the downloaded one.
    """
    if ref.additions:
        found = tuple(each.model_copy(update={"source": str(path(each.source).absolute())}) for each in ref.additions)
        ref = ref.model_copy(update={"additions": found})
    if not ref.source:
        if ref.revision:
            raise ModelError(f"the revision `{ref.revision}` is given without a model", hint="name the model, too")
        return ref
    place = path(ref.source).absolute()
    revision = Models(_home.get()).revision(ref.source)
    if ref.revision and ref.revision != revision:
        message = f"`{ref.source}` is at revision `{revision or 'none'}`, not `{ref.revision}`"
        raise ModelError(message, hint=f"`studio models pull {ref.source}` downloads the pinned revision")
    return ref.model_copy(update={"source": str(place), "revision": revision})
