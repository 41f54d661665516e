"""Resuming the requests that a crash left: lists them, and turns each into a request to the engine.

A request that cannot be resumed is rejected with its reason; its checkpoint stays, and the others go on.

Try it: ``studio resume --list``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from studio.engine import Request, Ticket
from studio.engine.checkpoints.checkpoint import SUFFIX, Checkpoint
from studio.engine.checkpoints.run_folder import RUNNING, RunFolder, left
from studio.errors import CheckpointError, StudioError, UnknownName
from studio.requests import Requests
from studio.weights.checksums import hash_weights


@dataclass(frozen=True)
class Unfinished:
    """A request that a crash left. `checkpoint` is None if the file cannot be read, and `error` says why."""

    id: str
    path: Path
    checkpoint: Checkpoint | None = None
    error: CheckpointError | None = None


@dataclass(frozen=True)
class Resumed:
    """The ticket of each request that was resumed, and the error of each that was rejected, by id."""

    tickets: dict[str, Ticket]
    refused: dict[str, StudioError]


JOB = "job-"  # the names of the states of jobs start with it; `studio.jobs` continues them


def unfinished(home: Path) -> list[Unfinished]:
    """List the requests that crashes left, sorted by id; those of living processes and of jobs are not included."""
    return sorted((_look(path) for path in left(home) if not path.name.startswith(JOB)), key=lambda found: found.id)


def saved(home: Path, name: str) -> list[Path]:
    """The files of the states that were saved under `name`, or under names that start with it if it ends with `*`."""
    return sorted((home / RUNNING).glob(f"[!.]*/{name}{SUFFIX}"))


def named(made: Request, name: str, requests: Requests, folder: RunFolder, device: str) -> Request:
    """The request with its state saved under `name`, continued from that state if there is one. A state that cannot be
    used is deleted, and the request starts again, with a notice.
    """
    made = replace(made, saved_as=name)
    for path in saved(folder.home, name):
        try:
            return replace(request(_look(path), requests, folder, device), saved_as=name)
        except CheckpointError as error:
            path.unlink(missing_ok=True)
            made = replace(made, notices=(*made.notices, f"started again, as {error.message}"))
    return made


def choose(found: Sequence[Unfinished], ids: Sequence[str]) -> list[Unfinished]:
    """The requests with these ids, or all if none is given. Raises UnknownName."""
    known = {each.id: each for each in found}
    for name in ids:
        if name not in known:
            raise UnknownName("unfinished request", name, known)
    return [known[name] for name in dict.fromkeys(ids)] if ids else list(found)


def request(found: Unfinished, requests: Requests, folder: RunFolder, device: str) -> Request:
    """Make the request that continues on `device`, and move its checkpoint to the engine's run folder. Raises
    StudioError if that is impossible.
    """
    if found.checkpoint is None:
        raise found.error or CheckpointError(found.path, "it cannot be read")
    progress = found.checkpoint.progress
    spec = progress.spec
    made = requests.of_spec(spec.model_copy(update={"model": spec.model.unpinned()}), progress.plugin)
    _check_unchanged(found.checkpoint, made)
    plugins = (progress.plugin.version, made.plugin.version)
    pairs = {"the plugin's version": plugins, "the device": (progress.device, device)}
    changes = [f"resumed; {what} changed from `{old}` to `{new}`" for what, (old, new) in pairs.items() if old != new]
    own = replace(found.checkpoint, path=folder.claim(found.path))
    return replace(made, resume=own, notices=(*progress.notices, *changes))


def _check_unchanged(checkpoint: Checkpoint, request: Request) -> None:
    """Raises CheckpointError if the generator, its version or its weights have changed."""
    then, name = checkpoint.progress, checkpoint.progress.spec.generator
    if request.plugin.name != then.plugin.name:
        message = f"`{name}` was of the plugin `{then.plugin.name}`, but is now of `{request.plugin.name}`"
        raise CheckpointError(checkpoint.path, message)
    if request.generator.version != then.generator_version:
        versions = f"{then.generator_version} -> {request.generator.version}"
        raise CheckpointError(checkpoint.path, f"the version of `{name}` changed: {versions}")
    was, now = then.spec.model.sha256, hash_weights(request.generator.weights(request.weights))
    if now != was:
        names = sorted(name for name in now.keys() | was.keys() if now.get(name) != was.get(name))
        raise CheckpointError(checkpoint.path, f"the weights changed: {', '.join(f'`{name}`' for name in names)}")


def _look(path: Path) -> Unfinished:
    try:
        return Unfinished(path.stem, path, Checkpoint.open(path))
    except CheckpointError as error:
        return Unfinished(path.stem, path, error=error)
