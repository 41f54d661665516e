"""Autosave: saving states between steps, at a cost of less than 1% of step time.

Saving may use 1% of step time: steps accrue that budget, and a state is saved when the budget covers the cost of the
last save of that generator. So the limit holds for any number of requests, any state size and any disk. The request
saved longest ago is next; requests that have run for less than two seconds are not saved. A checkpoint is deleted when
its request ends, unless the cause was not the request itself: a crash, a full disk, the engine.

Try it: ``studio image "a red apple" --steps 1000 &  sleep 9; kill -9 $!; studio resume``
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from studio.engine.checkpoints.checkpoint import SUFFIX, SavedProgress, pack
from studio.engine.checkpoints.encoding import Unsavable
from studio.engine.checkpoints.run_folder import RunFolder
from studio.engine.events import Event, Failed, Notice
from studio.engine.observe.watcher import Watcher
from studio.engine.provenance import seen_of, spec_of
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import GeneratorFailed, StoreError
from studio.store import Store

SHARE = 0.01  # fraction of step time
YOUNGEST_S = 2.0  # requests that have run for less are not saved
_GUESS_S = 0.005  # assumed cost of the first save of a generator
_LOOK_EVERY_S = 0.05  # checking hundreds of requests after every step would cost more than saving
_BUDGET_S = 0.02  # the largest budget, unless a save costs more


@dataclass(eq=False)
class SavedEntry:
    """What autosave knows of a request. `path` is None until it is saved."""

    entry: TrackedRequest
    name: str
    since: float  # time of the last save, or of the start
    path: Path | None = None
    parents_stored: bool = False
    moved: bool = False  # it has been stepped since then
    given_up: bool = False


class Autosaver(Watcher):
    """Saves the states of one engine into its run folder, and the input media of these requests into the store."""

    def __init__(
        self,
        folder: RunFolder,
        store: Store,
        watchers: Sequence[Watcher] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder, self.store, self.watchers, self.clock = folder, store, watchers, clock
        self._kept: dict[TrackedRequest, SavedEntry] = {}
        self._budget = 0.0
        self._look_again = 0.0
        self._costs: dict[str, float] = {}

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """Accrue budget."""
        most = max(_BUDGET_S, *self._costs.values(), 0.0)
        self._budget = min(self._budget + SHARE * (ended - begun), most)

    def save_if_due(self, entry: TrackedRequest) -> None:
        """Save a state if the budget allows; called for each request after its step."""
        if not entry.request.spec.stored:
            return
        kept = self._kept.get(entry) or self._meet(entry)
        kept.moved = True
        now = self.clock()
        if self._budget <= 0 or now < self._look_again:
            return
        self._look_again = now + _LOOK_EVERY_S
        due = [each for each in self._kept.values() if self._may(each, now)]
        if due:
            chosen = min(due, key=lambda each: each.since)
            if self._budget >= self._costs.get(chosen.entry.name, _GUESS_S):
                self._save(chosen, now)

    def end(self, entry: TrackedRequest, event: Event) -> None:
        """Delete the checkpoint, unless the cause of the end was not the request itself."""
        kept = self._kept.pop(entry, None) or SavedEntry(entry, "", 0.0, _resumed(entry))
        others = isinstance(event, Failed) and not isinstance(event.error, GeneratorFailed)
        if kept.path is not None and not others and not entry.paused:
            kept.path.unlink(missing_ok=True)

    def save(self, entry: TrackedRequest) -> bool:
        """Save a state now, whatever it costs. Returns False, with a notice to the user, if that is impossible."""
        kept = self._kept.get(entry) or self._meet(entry)
        if kept.path is None or kept.moved:
            self._save(kept, self.clock())
        return not kept.given_up

    def _meet(self, entry: TrackedRequest) -> SavedEntry:
        path = _resumed(entry)
        name = path.name if path else (entry.request.saved_as or secrets.token_hex(4)) + SUFFIX
        self._kept[entry] = SavedEntry(entry, name, entry.started, path)
        return self._kept[entry]

    def _may(self, kept: SavedEntry, now: float) -> bool:
        return kept.moved and not kept.given_up and now - kept.entry.started >= YOUNGEST_S

    def _save(self, kept: SavedEntry, begun: float) -> None:
        """Save, and charge the budget. If a state cannot be saved, its request goes on, with one notice."""
        entry = kept.entry
        try:
            if not kept.parents_stored:
                for parent in entry.request.inputs.media():
                    self.store.put(parent.attach(None, None))
                kept.parents_stored = True
            assert entry.state is not None
            data = pack(progress_of(entry), entry.state)
            kept.path = self.folder.write(kept.name, data, durable=True)
        except Exception as error:  # a plugin's state may hold anything
            kept.given_up = True
            entry.emit(Notice(f"this request cannot be resumed after a crash: {_reason(error)}"))
            return
        ended = self.clock()
        kept.since, kept.moved = ended, False
        self._costs[entry.name] = ended - begun
        self._budget -= ended - begun
        for watcher in self.watchers:
            watcher.saved(entry.number, entry.name, len(data), begun, ended)


def progress_of(entry: TrackedRequest) -> SavedProgress:
    """Describe a running request so that another process can resume it."""
    assert entry.state is not None
    return SavedProgress(
        **seen_of(entry),
        spec=spec_of(entry, entry.threads),
        position=entry.state.position,
        seconds=entry.timing.work,
        saved=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _resumed(entry: TrackedRequest) -> Path | None:
    """The checkpoint that a request was resumed from."""
    saved = entry.request.resume
    return None if saved is None else saved.path


def _reason(error: Exception) -> str:
    if isinstance(error, Unsavable):
        return str(error)
    return error.message if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
