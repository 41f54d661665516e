"""The loop: pure, single-threaded, with an injectable clock. Each `tick` does one small piece of work.

`order` says whose turn it is: to be finished, to be admitted (load its model, start it), or to be stepped. A step is
led by that request, and others whose batch key is equal ride along, as many as was measured to pay and as fit into
memory.

What a plugin raises or returns wrongly ends its own request. If a batch fails, its states are as they were, and its
members go on alone for a while (1, 2, 4 … steps for each failure), so that the guilty one fails by itself. A step that
runs out of memory is tried again, one rung of a ladder further: without idle models, at half the width, with a state
that needs less, without the others' models. A call that does not return in time ends all requests to its generator,
which is refused more work while it hangs. This module knows nothing of threads, files or recipes: `complete` is called
for what is made; and where plugins are to be called, the turn that this is part of yields a Call (see `calls`).

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from studio import devices
from studio.devices.memory import Gauge, NoGauge
from studio.engine.admission import Room
from studio.engine.batching import LATENCY_GOAL_S, Groups, finish_together, same_key
from studio.engine.calls.call import Calling, directly
from studio.engine.calls.failures import as_error, check_key
from studio.engine.completion import Ending, Keeper, Later, at_once, tell
from studio.engine.cost.cpu_threads import Threads
from studio.engine.cost.profile import Measured, finishes
from studio.engine.entry import Entry, group_of
from studio.engine.events import Loading, Preview, Progress, Queued, Started
from studio.engine.fair_queue import Order, Work
from studio.engine.invoke import Actions
from studio.engine.memory.heap import Heap
from studio.engine.memory.model_cache import Models, NoRoom
from studio.engine.observe.watcher import Watcher, Watchers
from studio.engine.out_of_memory import climb, drop_models, drop_recordings
from studio.errors import DeviceLost, GeneratorFailed, OutOfMemory, StudioError, TimedOut, describe
from studio.generator import Generator, State
from studio.media import Media, Text
from studio.units import show_bytes

__all__ = ["MAX_RUNNING", "Entry", "Keeper", "Loop"]

MAX_RUNNING = 32  # states that one client may have on the way at once, in each class
_STEP, _FINISH = Work.STEP, Work.FINISH  # Python 3.11 looks members up by a call
_number, _position = attrgetter("number"), attrgetter("position")


class Loop:
    """Requests in, events out. `complete(entry, media)` returns the rest of the work on what was made, which `later`
    does and which returns what Finished carries; if either raises, that fails.

    `keeper` is called between steps, when `entry.state` may be saved, and at a request's end.
    """

    def __init__(
        self,
        models: Models,
        complete: Callable[[Entry, Media], Callable[[], Media]],
        clock: Callable[[], float],
        max_running: int = MAX_RUNNING,
        watchers: Sequence[Watcher] = (),
        keeper: Keeper | None = None,
        *,
        later: Later = at_once,
        measured: Measured | None = None,
        gauge: Gauge | None = None,
        goal_s: float = LATENCY_GOAL_S,
        free_threads: bool = False,
        numbers: Iterator[int] | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        self.models, self.complete, self.clock = models, complete, clock
        self.watcher, self.keeper = Watchers(watchers), keeper
        self.measured = measured or Measured()
        gauge = gauge or NoGauge()
        heap = Heap(models.ledger, gauge)
        self.room = Room(models, self.measured, heap, goal_s)
        self.order: Order[Entry] = Order(max_running)
        models.watcher = self.watcher
        threads = Threads(self.measured, free=free_threads)
        self.actions = Actions(clock, self.measured, gauge, heap, threads, devices.device(models.device))
        self._groups = Groups()
        self.ending = Ending(self.room, self.order, self._groups, self.watcher, keeper, clock, later, self._hang)
        self._hung: dict[Generator, TimedOut] = {}
        self._numbers = numbers or itertools.count(1)
        self._last_step = 0.0  # when it ended
        self._told_of_threads = False
        self._stepped = False  # since a request was last admitted
        self._notices = tuple(notices)  # to every request
        self._lost: DeviceLost | None = None
        self._told = 0  # bytes held, as the watchers know

    @property
    def waiting(self) -> list[Entry]:
        """The requests that wait to be admitted."""
        return self.order.waiting()

    @property
    def running(self) -> list[Entry]:
        """The requests that have begun and not ended."""
        return self.room.entered()

    def accept(self, entry: Entry) -> None:
        """Take a request in; one that can never run ends at once."""
        entry.number = next(self._numbers)
        self.watcher.accepted(entry.number, entry.name, entry.client, entry.background, self.clock())
        entry.emit(Queued(ahead=len(self.order)))
        self.order.accept(entry)
        try:
            refusal = self._lost or self._refusal(entry.request.generator) or self.room.refusal(entry)
        except BaseException as error:  # a plugin may raise anything; see failures
            refusal = as_error(entry.name, "load", error)
        if refusal is not None:
            self.fail(entry, refusal)

    def cancel(self, entry: Entry) -> None:
        """End a request and release its state, unless its work is done."""
        self.ending.cancel(entry)

    def fail(self, entry: Entry, error: StudioError) -> None:
        """End a request with an error, unless it has ended."""
        self.ending.fail(entry, error)

    def lose(self, error: DeviceLost) -> None:
        """The device is lost: end all requests with the reason, and accept none."""
        self._lost = error
        for entry in self.order.jobs():
            self.fail(entry, error)

    def tick(self) -> bool:
        """Do one piece of work, plugins' calls included; return False if there is none."""
        return directly(self.turn())

    def turn(self) -> Calling[bool]:
        """One piece of work, for another to run its calls; returns False if there is none."""
        did = yield from self._work()
        ledger = self.models.ledger
        if ledger.used != self._told:
            self._told = ledger.used
            self.watcher.memory(self.models.device, ledger.used, ledger.budget or 0)
        return did

    def _work(self) -> Calling[bool]:
        due = self.order.next(self._enough)
        if due is None:
            parked = self.order.parked
            if parked:  # all that run wait for room that none of them leaves
                self.fail(parked[-1], self.room.crowded(parked[-1]))
            return bool(parked)
        work, entry = due
        try:
            yield from self._serve(work, entry)
        except GeneratorExit:
            raise
        except BaseException as error:  # of a plugin's object that was only looked at: a property may raise too
            self.fail(entry, as_error(entry.name, work.value, error))
        return True

    def _enough(self, oldest: Entry) -> bool:
        """Whether the batch that pays is full without those of the client that wait. Between two steps one of these may
        begin nevertheless, so that it can be saved.
        """
        try:
            return not self._stepped and self._groups.size(oldest) >= self.room.wanted(oldest)
        except BaseException:  # a plugin's properties may raise anything; its step will tell
            return True

    def _serve(self, work: Work, entry: Entry) -> Calling[None]:
        if work is _STEP:
            yield from self._step(entry)
        elif work is _FINISH:
            yield from self._finish(entry)
        else:
            self._stepped = False
            begun = self.clock()
            yield from self._admit(entry)
            self.order.served(entry, self.clock() - begun)

    def _admit(self, entry: Entry) -> Calling[None]:
        """Load the model and start the request, if there is room; else its class waits."""
        begun = self.clock()
        entry.timing.queue = begun - entry.accepted
        where = "load"
        try:
            if not self.room.may_admit(entry):
                self._wait_for_room(entry)
                return
            yield from self._ensure_model(entry)
            loaded = self.clock()
            entry.timing.load += loaded - begun
            if entry.cancelled:
                self.cancel(entry)
                return
            where = "start"
            state, peak = yield from self.actions.start(entry)
            key, done = check_key(entry.request.generator.batch_key(state)), bool(state.done)
        except NoRoom:
            self._wait_for_room(entry)
            return
        except BaseException as error:  # a plugin may raise anything; see failures
            self._failed_alone(entry, where, error)
            return
        entry.state, entry.key, entry.done = state, key, done
        self.actions.settle(entry, peak)
        if not self.room.enter(entry):
            entry.state = entry.rng = entry.key = None
            self._wait_for_room(entry)
            return
        self._began(entry, state, loaded)

    def _began(self, entry: Entry, state: State, loaded: float) -> None:
        self.room.regroup(entry, group_of(entry))
        self._groups.file(entry)
        self.order.admitted(entry)
        entry.started = self.clock()
        entry.timing.start = entry.started - loaded
        self.watcher.started(entry.number, entry.name, state.steps, loaded, entry.started)
        entry.emit(Started(state.steps))
        read = [text for media in entry.request.inputs.media() for text in media.notices]
        tell(entry, (*self._notices, *entry.request.notices, *read, *state.notices))
        if entry.done:
            self._done(entry, 0.0)
        elif self.keeper is not None:
            self.keeper.keep(entry)

    def _ensure_model(self, entry: Entry) -> Calling[None]:
        """Have the request's model on the device. Raises NoRoom, or what loading raises."""
        request = entry.request
        if entry.model is not None and entry.model.resident:
            self.models.parts.wait(entry.model.parts)  # it may have come back beside another's step
            entry.model.used = self.clock()
            return
        running = entry.state is not None
        if not self.models.loaded(request):
            entry.emit(Loading(entry.name, self.models.device))
        rank = self.room.all_but(entry) if running else self.room.beside(entry)
        model = yield from self.models.get(request, entry.limit_s, rank)
        if entry.model not in (None, model):
            raise GeneratorFailed(entry.name, f"the weights of `{entry.name}` were changed while it ran")
        entry.model = model
        if model.streamed:
            tell(entry, (f"its weights of {show_bytes(model.whole)} were streamed, for they exceed the memory",))

    def _wait_for_room(self, entry: Entry) -> None:
        """Wait until something is released; where nothing runs that could, fail."""
        entry.model = None
        if refusal := self.room.refusal(entry):
            self.fail(entry, refusal)
        elif self.room.empty:
            self.fail(entry, self.room.crowded(entry))
        else:
            self.order.block(entry)

    def _step(self, lead: Entry) -> Calling[None]:
        """Step a batch once; on failure leave every state as it was."""
        if lead.done:  # it stood aside before its end
            self._done(lead, 0.0)
            return
        self._stepped = True
        begun = self.clock()
        batch = [lead]
        try:
            yield from self._ensure_model(lead)
            width = self.room.width(lead, self._groups.most(lead))
            if width:
                batch = self._groups.batch(lead, width)
                self._prefetch()
                yield from self._step_together(batch)
            else:
                self._no_room(lead)
        except NoRoom:
            self._no_room(lead)
        except BaseException as error:  # a plugin may raise anything; see failures
            yield from self._step_failed(batch, error, begun)
        seconds = (self.clock() - begun) / len(batch)
        for entry in batch:
            if entry.done and not entry.ended:
                self._done(entry, seconds)
            else:
                self.order.served(entry, seconds)

    def _prefetch(self) -> None:
        """Let a model that was put off come back beside this step, if one that waits wants it and there is room."""
        if self.models.any_put_off:
            for entry in self.order.waiting()[:1]:
                self.models.prefetch(entry.request)

    def _step_together(self, batch: list[Entry]) -> Calling[None]:
        made, begun, ended = yield from self.actions.step(batch)
        numbers, positions = tuple(map(_number, batch)), tuple(map(_position, made))
        self.watcher.stepped(numbers, positions, batch[0].name, begun, ended)
        before, self._last_step = self._last_step, ended
        for entry, state in zip(batch, made, strict=True):
            if not entry.recent:
                entry.recent.append(max(entry.started, before))  # waiting while others are stepped tells no pace
            try:
                due = self._advance(entry, state, len(batch), ended - begun, ended)
            except BaseException as error:  # a state's properties may raise anything
                self.fail(entry, as_error(entry.name, "step", error))
                continue
            if due:
                yield from self._preview(entry, state)
        if writing := [entry for entry in batch if entry.streams and entry.state is not None and not entry.done]:
            yield from self._stream(writing)

    def _stream(self, batch: list[Entry]) -> Calling[None]:
        """Tell what these have written since; one whose text cannot be told fails."""
        try:
            pieces = yield from self.actions.deltas(batch)
        except BaseException as error:  # as above
            found = as_error(batch[0].name, "delta", error)
            if isinstance(found, TimedOut):
                self._hang(batch[0], found)
            for entry in batch:
                self.fail(entry, found)
            return
        for entry, piece in zip(batch, pieces, strict=True):
            if isinstance(piece, BaseException):
                self.fail(entry, as_error(entry.name, "delta", piece))
            else:
                entry.tell_text(piece)

    def _no_room(self, entry: Entry) -> None:
        """Let the others go first; a request that needs more than there is ends."""
        if refusal := self.room.refusal(entry):
            self.fail(entry, refusal)
            return
        self._groups.remove(entry)
        self.order.park(entry)

    def _step_failed(self, batch: list[Entry], error: BaseException, begun: float) -> Calling[None]:
        if self._loses(error):
            return
        lead = batch[0]
        position = lead.state.position + 1 if lead.state else 0
        found = as_error(lead.name, f"step {position}", error)
        self.watcher.stumbled(tuple(map(_number, batch)), lead.name, found.message, begun, self.clock())
        if isinstance(found, TimedOut):
            self._hang(lead, found)
            return
        batch = self._without_spoilt(batch, found)
        if not batch:
            return
        rung = (yield from climb(self.room, batch)) if isinstance(found, OutOfMemory) else ""
        if rung:
            for entry in batch:
                tell(entry, (f"out of memory at width {len(batch)}: {rung}",))
        elif len(batch) == 1:
            self.fail(batch[0], found)
        else:
            for entry in batch:
                entry.alone = 2**entry.batch_failures
                entry.batch_failures += 1

    def _without_spoilt(self, batch: list[Entry], found: StudioError) -> list[Entry]:
        """Fail those whose states the step changed before it failed: they cannot be tried again."""
        spoilt = self.actions.spoilt()
        for entry in spoilt:
            message = f"{found.message}; and it had changed its state before, which a step must not"
            self.fail(entry, GeneratorFailed(entry.name, message, hint=found.hint))
        return [entry for entry in batch if entry not in spoilt]

    def _failed_alone(self, entry: Entry, where: str, error: BaseException) -> None:
        """A load, start or finish failed: try again with fewer models beside it if memory ran out, else fail."""
        if self._loses(error):
            return
        found = as_error(entry.name, where, error)
        if isinstance(found, TimedOut):
            self._hang(entry, found)
        elif isinstance(found, OutOfMemory) and (rung := drop_models(self.room, entry)):
            tell(entry, (f"out of memory in {where}: {rung}",))
        else:
            self.fail(entry, found)

    def _loses(self, error: BaseException) -> bool:
        """Whether an error has made the device unusable; then all requests are ended here."""
        device = self.actions.device
        if not device.is_lost(error):
            return False
        message = f"the device `{device.name}` failed and is lost to this process: {describe(error, 200)}"
        self.lose(DeviceLost(message, hint="start Studio again; `--device cpu` does without it"))
        return True

    def _hang(self, entry: Entry, error: TimedOut) -> None:
        """A call was abandoned: end what its generator has in hand, and lend it nothing until the call returns."""
        generator = entry.request.generator
        self._hung[generator] = error
        if entry.model is not None:
            self.room.stuck[entry.model] = error
        for each in self.order.jobs():
            if each.request.generator is generator:
                self.fail(each, error)

    def _refusal(self, generator: Generator) -> StudioError | None:
        """The reason why a generator is given no work, or None."""
        error = self._hung.get(generator)
        if error is not None and error.over():
            del self._hung[generator]
            return None
        return error

    def _advance(self, entry: Entry, state: State, width: int, seconds: float, now: float) -> bool:
        """Take over the next state, tell the user, and find the batch key for the step to come; returns whether a
        preview is due.
        """
        entry.done = bool(state.done)
        entry.state, entry.drops = state, 0
        if entry.alone:
            entry.alone -= 1
        entry.width_min = min(entry.width_min or width, width)
        entry.width_max = max(entry.width_max, width)
        entry.timing.steps += seconds
        entry.recent.append(now)
        self.room.moved(entry)
        entry.emit(Progress(state.position, state.steps, now - entry.started, entry.eta_s(state)))
        if len(state.notices) > len(entry.notices):
            tell(entry, state.notices)
        if entry.done:
            return False
        try:
            self._regroup(entry, state, width)
        except BaseException as error:  # a plugin may raise anything; see failures
            self.fail(entry, as_error(entry.name, "batch_key", error))
            return False
        if self.keeper is not None:
            self.keeper.keep(entry)
        every = 0 if entry.previews_failed else entry.request.spec.preview_every
        return bool(every) and state.position % every == 0

    def _regroup(self, entry: Entry, state: State, width: int) -> None:
        """File the request under the batch key of its next step, behind those that wait longer."""
        key = check_key(entry.request.generator.batch_key(state))
        changed = self.actions.reconsider(entry, width)
        if changed:
            entry.notices.append(changed)  # for the recipe; the user is told once, at the end
            entry.last_notice = "" if self._told_of_threads else changed
            self._told_of_threads = True
        if changed or not same_key(key, entry.key):
            entry.key = key
            self.room.regroup(entry, group_of(entry))
            self._groups.file(entry)

    def _preview(self, entry: Entry, state: State) -> Calling[None]:
        """Make a preview; one that fails costs the preview, not the work, and is told."""
        begun = self.clock()
        try:
            if (media := (yield from self.actions.preview(entry, state))) is not None:
                entry.emit(Preview(state.position, media))
        except BaseException as error:  # a plugin may raise anything; see failures
            found = as_error(entry.name, "preview", error)
            if isinstance(found, TimedOut):
                self._hang(entry, found)
                return
            entry.previews_failed = True
            tell(entry, (f"no more previews: {found.message}",))
        self.watcher.previewed(entry.number, entry.name, begun, self.clock())

    def _done(self, entry: Entry, seconds: float) -> None:
        """The last step is made: what is left is to finish."""
        self._groups.remove(entry)
        self.order.served(entry, seconds, done=True)

    def _finish(self, lead: Entry) -> Calling[None]:
        """Make the media of a request that is done, and of others in the same call."""
        begun = self.clock()
        batch = [lead]
        try:
            yield from self._ensure_model(lead)
            alike = finish_together(lead, self.order.done(lead))
            width = self.room.finishing(lead, len(alike))
            if not width:
                raise NoRoom
            batch = alike[:width]
            media = yield from self.actions.finish(batch)
            ended = self.clock()
            for entry, made in zip(batch, media, strict=True):
                self._finished(entry, made, len(batch), begun, ended)
        except NoRoom:
            self._no_room(lead)
        except BaseException as error:  # a plugin may raise anything; see failures
            self._finish_failed(batch, error)
        for entry in batch:
            self.order.served(entry, (self.clock() - begun) / len(batch))

    def _finished(self, entry: Entry, made: Media, width: int, begun: float, ended: float) -> None:
        """The media is made: end the request with what is left to do on it."""
        entry.timing.finish = ended - begun
        entry.width_max = max(entry.width_max, width)
        self.watcher.finished(entry.number, entry.name, begun, ended)
        try:
            if entry.streams and isinstance(made, Text):
                entry.tell_rest(made.text)
            rest = self.complete(entry, made)
        except BaseException as error:  # a media's own code may raise anything
            self._failed_alone(entry, "finish", error)
            return
        self.ending.finish(entry, rest)

    def _finish_failed(self, batch: list[Entry], error: BaseException) -> None:
        """One fails by itself; several are finished anew, fewer at once or each alone."""
        lead = batch[0]
        if len(batch) == 1:
            self._failed_alone(lead, "finish", error)
            return
        found = as_error(lead.name, "finish", error)
        if isinstance(found, TimedOut):
            self._hang(lead, found)
        elif isinstance(found, OutOfMemory) and lead.group is not None:
            rung = drop_recordings(self.room, lead)
            rung = rung or f"the width was reduced to {self.room.halve(finishes(lead.group), len(batch))}"
            for entry in batch:
                tell(entry, (f"out of memory in finishing {len(batch)}: {rung}",))
        else:
            for entry in batch:
                entry.alone = 1
