"""The loop: pure, single-threaded, with an injectable clock. Each `tick` does one small piece of work.

In this order: finish one request that is done, admit one that waits (load its model, start it), or step one batch. The
batch is led by the request that was served longest ago; others with an equal batch key ride along, the longest
unserved first, up to the generator's `max_batch`. So nobody starves, and unlike models take turns.

What a plugin raises or returns wrongly ends its own request. If a batch fails, its states are as they were, and its
members go on alone for a while (1, 2, 4 … steps for each failure), so that the guilty one fails by itself. This module
knows nothing of threads, files or recipes: `complete` is called for what is made.

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from studio import torch_setup
from studio.engine.failures import as_error, check_key, check_media, check_state, check_step
from studio.engine.models import Model
from studio.engine.request import (
    CancelledEvent,
    Event,
    Failed,
    Finished,
    Loading,
    Notice,
    Preview,
    Progress,
    Queued,
    Request,
    Started,
    Timing,
)
from studio.engine.watch import Watcher
from studio.errors import StudioError
from studio.generator import Generator, Rng, State
from studio.media import Media

MAX_RUNNING = 32  # states held at once; a memory ledger will decide instead
_RECENT = 9  # intervals between steps that the time left is judged by


class ModelSource(Protocol):
    """Where the loop gets its models."""

    device: str

    def loaded(self, generator: Generator, wanted: str | None) -> bool:
        """Whether `get` returns at once."""

    def get(self, generator: Generator, wanted: str | None) -> Model:
        """Return the model, loaded."""


@dataclass(eq=False)
class Entry:
    """One accepted request inside the loop. `cancelled` may be set by another thread; the rest is the loop's own."""

    request: Request
    emit: Callable[[Event], None]
    accepted: float
    number: int = 0
    timing: Timing = field(default_factory=Timing)
    cancelled: bool = False
    ended: bool = False
    model: Model | None = None
    rng: Rng | None = None
    state: State | None = None
    key: Hashable = None
    turn: int = 0
    alone: int = 0
    batch_failures: int = 0
    width_min: int = 0
    width_max: int = 0
    notices: list[str] = field(default_factory=list)
    started: float = 0.0
    stepped: float = 0.0
    intervals: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def name(self) -> str:
        """The generator's name."""
        return self.request.generator.name

    @property
    def lent(self) -> Any:
        """The model's value, as generators see it."""
        return self.model.value if self.model else None


class Keeper(Protocol):
    """Who saves states. Neither call may raise."""

    def keep(self, entry: Entry) -> None:
        """The request moved one step on and is not done."""

    def end(self, entry: Entry, event: Event) -> None:
        """This is the request's last event."""


class Loop:
    """Requests in, events out. `complete(entry, media)` returns what Finished carries; if it raises, that fails.

    `keeper` is called between steps, when `entry.state` may be saved, and at a request's end.
    """

    def __init__(
        self,
        models: ModelSource,
        complete: Callable[[Entry, Media], Media],
        clock: Callable[[], float],
        max_running: int = MAX_RUNNING,
        watchers: Sequence[Watcher] = (),
        keeper: Keeper | None = None,
    ) -> None:
        self.models, self.complete, self.clock, self.max_running = models, complete, clock, max_running
        self.watchers, self.keeper = watchers, keeper
        self._accepted = 0
        self.waiting: deque[Entry] = deque()
        self.running: list[Entry] = []
        self._turn = 0

    def accept(self, entry: Entry) -> None:
        """Take a request in."""
        self._accepted += 1
        entry.number = self._accepted
        for watcher in self.watchers:
            watcher.accepted(entry.number, entry.name, entry.request.client, entry.request.background, self.clock())
        entry.emit(Queued(ahead=len(self.waiting) + len(self.running)))
        self.waiting.append(entry)

    def cancel(self, entry: Entry) -> None:
        """End a request and release its state, unless it has ended."""
        entry.cancelled = True
        if not entry.ended:
            self._end(entry, CancelledEvent())

    def fail(self, entry: Entry, error: StudioError) -> None:
        """End a request with an error, unless it has ended."""
        if not entry.ended:
            self._end(entry, Failed(error))

    def tick(self) -> bool:
        """Do one piece of work; return False if there is none."""
        done = next((entry for entry in self.running if entry.state is not None and entry.state.done), None)
        if done is not None:
            self._finish(done)
        elif self.waiting and len(self.running) < self.max_running:
            self._admit(self.waiting.popleft())
        elif self.running:
            self._step(self._choose())
        else:
            return False
        return True

    def _admit(self, entry: Entry) -> None:
        """Load the model and start the request."""
        request, generator = entry.request, entry.request.generator
        where = "load"
        begun = self.clock()
        entry.timing.queue = begun - entry.accepted
        try:
            if not self.models.loaded(generator, request.dtype):
                entry.emit(Loading(generator.name, self.models.device))
            entry.model = self.models.get(generator, request.dtype)
            loaded = self.clock()
            entry.timing.load = loaded - begun
            if entry.cancelled:
                self.cancel(entry)
                return
            where = "start"
            with torch_setup.inference():
                entry.state = state = self._begin(entry)
                entry.key = check_key(generator.batch_key(state))
        except BaseException as error:  # a plugin may raise anything; see failures
            self.fail(entry, as_error(entry.name, where, error))
            return
        entry.started = entry.stepped = self.clock()
        entry.timing.start = entry.started - loaded
        self.running.append(entry)
        for watcher in self.watchers:
            watcher.started(entry.number, entry.name, state.steps, loaded, entry.started)
        entry.emit(Started(state.steps))
        self._tell(entry, (*request.past.notices, *state.notices))

    def _begin(self, entry: Entry) -> State:
        """The first state, or the one to go on from."""
        request = entry.request
        if request.resume is not None:
            state, entry.rng = request.resume(entry.lent)
            entry.width_min, entry.width_max = request.past.width_min, request.past.width_max
            entry.timing.steps = request.past.seconds
        else:
            entry.rng = Rng(request.seed)
            state = request.generator.start(entry.lent, request.inputs, entry.rng)
        return check_state(state)

    def _choose(self) -> list[Entry]:
        """The request served longest ago, and those that may share its step."""
        lead = min(self.running, key=lambda entry: entry.turn)
        width = lead.request.generator.max_batch
        if lead.alone or width < 2:
            return [lead]
        others = [entry for entry in self.running if entry is not lead and self._may_share(lead, entry)]
        others.sort(key=lambda entry: entry.turn)
        return [lead, *others[: width - 1]]

    def _may_share(self, lead: Entry, other: Entry) -> bool:
        if other.model is not lead.model or other.alone or other.request.generator is not lead.request.generator:
            return False
        try:
            return bool(lead.key == other.key)
        except Exception:  # keys that cannot be compared are not equal: their states step apart
            return False

    def _step(self, batch: list[Entry]) -> None:
        """Step a batch once; on failure leave every state as it was."""
        generator, model = batch[0].request.generator, batch[0].lent
        self._turn += 1
        for entry in batch:
            entry.turn = self._turn
        states = [entry.state for entry in batch if entry.state is not None]
        begun = self.clock()
        try:
            with torch_setup.inference():
                made = check_step(states, generator.step(model, states))
        except BaseException as error:  # a plugin may raise anything; see failures
            self._step_failed(batch, error)
            return
        ended = self.clock()
        numbers = tuple(entry.number for entry in batch)
        for watcher in self.watchers:
            watcher.stepped(numbers, tuple(state.position for state in made), generator.name, begun, ended)
        for entry, state in zip(batch, made, strict=True):
            self._advance(entry, state, len(batch), ended - begun, ended)

    def _step_failed(self, batch: list[Entry], error: BaseException) -> None:
        if len(batch) == 1:
            position = batch[0].state.position + 1 if batch[0].state else 0
            self.fail(batch[0], as_error(batch[0].name, f"step {position}", error))
            return
        for entry in batch:
            entry.alone = 2**entry.batch_failures
            entry.batch_failures += 1

    def _advance(self, entry: Entry, state: State, width: int, seconds: float, now: float) -> None:
        """Take over the next state, tell the user, and find the batch key for the step to come."""
        entry.state = state
        entry.alone = max(0, entry.alone - 1)
        entry.width_min = min(entry.width_min or width, width)
        entry.width_max = max(entry.width_max, width)
        entry.timing.steps += seconds
        entry.intervals.append(now - entry.stepped)
        entry.stepped = now
        left = max(0, state.steps - state.position)
        eta = sorted(entry.intervals)[len(entry.intervals) // 2] * left
        entry.emit(Progress(state.position, state.steps, now - entry.started, 0.0 if state.done else eta))
        if len(state.notices) > len(entry.notices):
            self._tell(entry, state.notices)
        if state.done:
            return
        try:
            entry.key = check_key(entry.request.generator.batch_key(state))
        except BaseException as error:  # a plugin may raise anything; see failures
            self.fail(entry, as_error(entry.name, "batch_key", error))
            return
        if self.keeper is not None:
            self.keeper.keep(entry)
        every = entry.request.preview_every
        if every and state.position % every == 0:
            self._preview(entry, state)

    def _preview(self, entry: Entry, state: State) -> None:
        """Make a preview; one that fails costs the preview, not the work, and is told."""
        generator = entry.request.generator
        begun = self.clock()
        try:
            with torch_setup.inference():
                media = generator.preview(entry.lent, state)
            if media is not None:
                entry.emit(Preview(state.position, check_media(generator, media)))
        except BaseException as error:  # a plugin may raise anything; see failures
            entry.request = replace(entry.request, preview_every=0)
            reason = as_error(entry.name, "preview", error).message
            entry.notices.append(f"no more previews: {reason}")
            entry.emit(Notice(entry.notices[-1]))
        for watcher in self.watchers:
            watcher.previewed(entry.number, entry.name, begun, self.clock())

    def _finish(self, entry: Entry) -> None:
        generator = entry.request.generator
        begun = self.clock()
        try:
            with torch_setup.inference():
                media = check_media(generator, generator.finish(entry.lent, entry.state))
            entry.timing.finish = self.clock() - begun
            for watcher in self.watchers:
                watcher.finished(entry.number, entry.name, begun, begun + entry.timing.finish)
            media = self.complete(entry, media)
        except BaseException as error:  # a plugin may raise anything; see failures
            self.fail(entry, as_error(entry.name, "finish", error))
            return
        self._end(entry, Finished(media))

    def _tell(self, entry: Entry, notices: tuple[str, ...]) -> None:
        for text in notices:
            if text not in entry.notices:
                entry.notices.append(text)
                entry.emit(Notice(text))

    def _end(self, entry: Entry, event: Event) -> None:
        """Release what the request holds and emit its last event."""
        entry.ended = True
        if entry in self.running:
            self.running.remove(entry)
        elif entry in self.waiting:
            self.waiting.remove(entry)
        for watcher in self.watchers:
            watcher.ended(entry.number, entry.name, event.outcome, self.clock())
        if self.keeper is not None:
            self.keeper.end(entry, event)
        entry.state = entry.model = entry.rng = entry.key = None
        emit, entry.emit = entry.emit, _silent
        emit(event)


def _silent(event: Event) -> None:
    """Stand in for an ended entry's `emit`, so that whoever listened is let go of."""
    raise AssertionError(f"an event came after the last: {event}")
