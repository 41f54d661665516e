"""Taking up the requests that a crash left: which there are, and each as a request to the engine.

One that cannot be taken up is refused with its reason, stays where it is, and keeps no other from going on. This
module knows nothing of terminals.

Try it: ``studio resume --list``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from studio.engine import Request, Ticket
from studio.engine.checkpoint import Checkpoint
from studio.engine.folder import EngineFolder, left
from studio.engine.resumption import Resumption, check_unchanged, past_of
from studio.errors import CheckpointError, StudioError, UnknownName
from studio.media import Media
from studio.plugins import Plugins, missing
from studio.recipe import MediaRef
from studio.serving import serve


@dataclass(frozen=True)
class Unfinished:
    """A request that a crash left. `checkpoint` is None where the file cannot be read, and `error` says why."""

    id: str
    path: Path
    checkpoint: Checkpoint | None = None
    error: CheckpointError | None = None


@dataclass(frozen=True)
class Resumed:
    """What was taken up, and what was refused: the ticket, or the error, of each id."""

    tickets: dict[str, Ticket]
    refused: dict[str, StudioError]


@dataclass(frozen=True)
class Host:
    """What is needed to take requests up: plugins, media by hash, the engine's folder and device, the data folder."""

    plugins: Plugins
    fetch: Callable[[MediaRef], Media]
    folder: EngineFolder
    device: str
    home: Path

    def request(self, found: Unfinished) -> Request:
        """Make the request and take its checkpoint over. Raises StudioError where that cannot be."""
        if found.checkpoint is None:
            raise found.error or CheckpointError(found.path, "it cannot be read")
        identity = found.checkpoint.identity
        if identity.generator not in self.plugins.generators:
            raise missing(identity.generator, identity.plugin, self.plugins.reports)
        generator, plugin = self.plugins.generators[identity.generator], self.plugins.owner(identity.generator)
        inputs = generator.Inputs.from_recipe(identity.inputs, self.fetch)
        generator = serve(generator, inputs, home=self.home, invariant=identity.invariant)
        check_unchanged(found.checkpoint, generator, plugin)
        own = replace(found.checkpoint, path=self.folder.claim(found.path))
        resumption = Resumption(own, generator, inputs, self.device)
        past = past_of(identity, plugin, self.device)
        return Request(
            generator, inputs, identity.seed, plugin, dtype=identity.dtype, threads=identity.threads,
            preview_every=identity.preview_every, label=identity.label, client=identity.client,
            background=identity.background, invariant=identity.invariant, time_limit_s=identity.time_limit_s,
            resume=resumption, past=past, destination=identity.destination,
        )  # fmt: skip


def unfinished(home: Path) -> list[Unfinished]:
    """List what crashes left, in the order of ids; those of living processes are not among them."""
    return sorted(map(_look, left(home)), key=lambda found: found.id)


def choose(found: Sequence[Unfinished], ids: Sequence[str]) -> list[Unfinished]:
    """Those with these ids; without ids all. Raises UnknownName."""
    known = {each.id: each for each in found}
    for name in ids:
        if name not in known:
            raise UnknownName("unfinished request", name, known)
    return [known[name] for name in dict.fromkeys(ids)] if ids else list(found)


def _look(path: Path) -> Unfinished:
    try:
        return Unfinished(path.stem, path, Checkpoint.open(path))
    except CheckpointError as error:
        return Unfinished(path.stem, path, error=error)
