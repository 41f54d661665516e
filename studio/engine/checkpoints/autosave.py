"""Saving states between steps, at a cost of under 1%: when, which, and when a saved one goes.

Steps fill a purse with a hundredth of their time, and a save is made when the purse holds what the last one of that
generator cost: so the share holds for any number of requests, any size of state and any disk. The request that was
saved longest ago is next; one that has run for less than two seconds is not worth it. A checkpoint goes when its
request ends by itself, and stays where the fault was another's: a crash, a full disk, the engine. This module knows
nothing of how a state is written.

Try it: ``studio image "a red apple" --steps 1000 &  sleep 9; kill -9 $!; studio resume``
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from studio.engine.checkpoints.checkpoint import SUFFIX, Progress, pack
from studio.engine.checkpoints.encoding import Unsavable
from studio.engine.checkpoints.run_folder import EngineFolder
from studio.engine.events import Event, Failed, Notice
from studio.engine.loop import Entry
from studio.engine.observe.watcher import Watcher
from studio.engine.provenance import seen_of, spec_of
from studio.errors import GeneratorFailed, StoreError
from studio.store import Store

SHARE = 0.01  # of the time spent in steps
YOUNGEST_S = 2.0  # a request that has run for less is not saved
_GUESS_S = 0.005  # what the first save of a generator is taken to cost
_LOOK_EVERY_S = 0.05  # looking through hundreds of requests after every step would cost more than saving
_PURSE_S = 0.02  # the most that is put by, unless a save costs more


@dataclass(eq=False)
class Kept:
    """What the keeper knows of a request. `path` is None until it is saved."""

    entry: Entry
    name: str
    since: float  # when it was saved last, or started
    path: Path | None = None
    parents_stored: bool = False
    moved: bool = False  # it was stepped since
    given_up: bool = False


class Keeper(Watcher):
    """Saves the states of one engine into its folder; media they were made from go into the store."""

    def __init__(
        self,
        folder: EngineFolder,
        store: Store,
        watchers: Sequence[Watcher] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder, self.store, self.watchers, self.clock = folder, store, watchers, clock
        self._kept: dict[Entry, Kept] = {}
        self._purse = 0.0
        self._look_again = 0.0
        self._costs: dict[str, float] = {}

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """Fill the purse."""
        most = max(_PURSE_S, *self._costs.values(), 0.0)
        self._purse = min(self._purse + SHARE * (ended - begun), most)

    def keep(self, entry: Entry) -> None:
        """Save a state if one is due; called for each request after its step."""
        if not entry.request.spec.stored:
            return
        kept = self._kept.get(entry) or self._meet(entry)
        kept.moved = True
        now = self.clock()
        if self._purse <= 0 or now < self._look_again:
            return
        self._look_again = now + _LOOK_EVERY_S
        due = [each for each in self._kept.values() if self._may(each, now)]
        if due:
            chosen = min(due, key=lambda each: each.since)
            if self._purse >= self._costs.get(chosen.entry.name, _GUESS_S):
                self._save(chosen, now)

    def end(self, entry: Entry, event: Event) -> None:
        """Remove what was saved, unless the request ended by another's fault."""
        kept = self._kept.pop(entry, None) or Kept(entry, "", 0.0, _resumed(entry))
        others = isinstance(event, Failed) and not isinstance(event.error, GeneratorFailed)
        if kept.path is not None and not others:
            kept.path.unlink(missing_ok=True)

    def _meet(self, entry: Entry) -> Kept:
        path = _resumed(entry)
        name = path.name if path else secrets.token_hex(4) + SUFFIX
        self._kept[entry] = Kept(entry, name, entry.started, path)
        return self._kept[entry]

    def _may(self, kept: Kept, now: float) -> bool:
        return kept.moved and not kept.given_up and now - kept.entry.started >= YOUNGEST_S

    def _save(self, kept: Kept, begun: float) -> None:
        """Save, and pay. A state that cannot be saved is told of once, and its request goes on."""
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
            entry.emit(Notice(f"this cannot be resumed after a crash: {_reason(error)}"))
            return
        ended = self.clock()
        kept.since, kept.moved = ended, False
        self._costs[entry.name] = ended - begun
        self._purse -= ended - begun
        for watcher in self.watchers:
            watcher.saved(entry.number, entry.name, len(data), begun, ended)


def progress_of(entry: Entry) -> Progress:
    """Describe a running request so that another process can resume it."""
    assert entry.state is not None
    return Progress(
        **seen_of(entry),
        spec=spec_of(entry, entry.threads),
        position=entry.state.position,
        seconds=entry.timing.work,
        saved=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _resumed(entry: Entry) -> Path | None:
    """The checkpoint that a request was taken up from."""
    saved = entry.request.resume
    return None if saved is None else saved.path


def _reason(error: Exception) -> str:
    if isinstance(error, Unsavable):
        return str(error)
    return error.message if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
