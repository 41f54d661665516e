"""The loop of the engine: single-threaded, with an injectable clock. Each `tick` does one small piece of work.

The fair queue says which request runs next and whether it is finished, admitted (model loaded, request started) or
stepped. This is continuous batching: a step is led by that request, and others with an equal batch key join it, as many
as measured step times and free memory allow.

Calls that fail are handled in `recovery`. Calls of plugins are yielded as `Call` objects (see `calls.call`), so that
the thread that runs them can be replaced when one hangs. `complete` does what is left to do with the output.

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from studio.devices.memory import MemoryProbe, NoMemoryProbe
from studio.engine.calls.call import Calling, run_inline
from studio.engine.calls.failures import as_error, check_key
from studio.engine.cost.cpu_threads import ThreadTuner
from studio.engine.cost.profile import Profile
from studio.engine.events import Loading, Progress, Queued, Started
from studio.engine.invoke import Invoker
from studio.engine.memory.heap import Heap
from studio.engine.memory.model import NotEnoughMemory
from studio.engine.memory.model_cache import ModelCache
from studio.engine.observe.watcher import Watcher, Watchers
from studio.engine.outcomes.completion import Completion, Later, Saver, at_once, notify
from studio.engine.outcomes.live import LiveOutput
from studio.engine.outcomes.recovery import Recovery
from studio.engine.scheduling.admission import Admission
from studio.engine.scheduling.batching import LATENCY_GOAL_S, Groups, finish_batch, same_key, step_leader
from studio.engine.scheduling.fair_queue import FairQueue, Work
from studio.engine.scheduling.tracked import TrackedRequest, group_of
from studio.errors import GeneratorFailed, StudioError
from studio.generator import State
from studio.media import Media, Text
from studio.units import show_bytes

MAX_RUNNING = 32  # running requests of one client in each class
_STEP, _FINISH = Work.STEP, Work.FINISH  # Python 3.11 looks members up by a call
_number, _position = attrgetter("number"), attrgetter("position")


class Loop:
    """Requests in, events out.

    `complete(entry, media)` returns a function that stores the output; `later` runs it, and its result is what the
    Finished event carries. If either raises, the request fails. `saver` is called between steps, when `entry.state` may
    be saved, and at the end of each request.
    """

    def __init__(
        self,
        models: ModelCache,
        complete: Callable[[TrackedRequest, Media], Callable[[], Media]],
        clock: Callable[[], float],
        max_running: int = MAX_RUNNING,
        watchers: Sequence[Watcher] = (),
        saver: Saver | None = None,
        *,
        later: Later = at_once,
        profile: Profile | None = None,
        probe: MemoryProbe | None = None,
        goal_s: float = LATENCY_GOAL_S,
        free_threads: bool = False,
        numbers: Iterator[int] | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        self.models, self.complete, self.clock = models, complete, clock
        self.watcher, self.saver = Watchers(watchers), saver
        self.profile = profile or Profile()
        probe = probe or NoMemoryProbe()
        heap = Heap(models.ledger, probe)
        self.admission = Admission(models, self.profile, heap, goal_s)
        self.queue: FairQueue[TrackedRequest] = FairQueue(max_running)
        models.watcher = self.watcher
        threads = ThreadTuner(self.profile, free=free_threads)
        self.invoker = Invoker(clock, self.profile, probe, heap, threads, models.components)
        self._groups = Groups()
        self.completion = Completion(
            self.admission, self.queue, self._groups, self.watcher, saver, clock, later,
            lambda entry, error: self.recovery.abandon(entry, error),
        )  # fmt: skip
        self.recovery = Recovery(self.admission, self.queue, self.completion, self.invoker, self.watcher, clock)
        self.live = LiveOutput(self.invoker, self.completion, self.recovery, self.watcher, clock)
        self._numbers = numbers or itertools.count(1)
        self._last_step = 0.0  # when it ended
        self._threads_reported = False
        self._stepped = False  # since a request was last admitted
        self._notices = tuple(notices)  # to every request
        self._reported_used = 0  # bytes in use, as last reported to the watchers

    @property
    def waiting(self) -> list[TrackedRequest]:
        """The requests in the queue, not admitted yet."""
        return self.queue.waiting()

    @property
    def running(self) -> list[TrackedRequest]:
        """The requests that have started and not ended."""
        return self.admission.admitted_requests()

    def accept(self, entry: TrackedRequest) -> None:
        """Accept a request; one that can never run ends at once."""
        entry.number = next(self._numbers)
        self.watcher.accepted(entry.number, entry.name, entry.client, entry.background, self.clock())
        entry.emit(Queued(ahead=len(self.queue)))
        self.queue.accept(entry)
        try:
            refusal = self.recovery.refusal(entry.request.generator) or self.admission.refusal(entry)
        except BaseException as error:  # a plugin may raise anything; see failures
            refusal = as_error(entry.name, "load", error)
        if refusal is not None:
            self.fail(entry, refusal)

    def cancel(self, entry: TrackedRequest) -> None:
        """End a request and release its state, unless its work is done."""
        self.completion.cancel(entry)

    def pause(self, entry: TrackedRequest) -> None:
        """Save a request's state and end it as `cancel` does, unless that is impossible or its work is done."""
        self.completion.pause(entry)

    def fail(self, entry: TrackedRequest, error: StudioError) -> None:
        """End a request with an error, unless it has ended."""
        self.completion.fail(entry, error)

    def tick(self) -> bool:
        """Do one piece of work, calls of plugins included; return False if there is none."""
        return run_inline(self.turn())

    def turn(self) -> Calling[bool]:
        """One piece of work, whose calls the driver of this Calling runs; returns False if there is none."""
        did = yield from self._work()
        ledger = self.models.ledger
        if ledger.used != self._reported_used:
            self._reported_used = ledger.used
            self.watcher.memory(self.models.device, ledger.used, ledger.budget or 0)
        return did

    def _work(self) -> Calling[bool]:
        due = self.queue.next(self._enough)
        if due is None:
            parked = self.queue.parked
            if parked:  # all running requests wait for memory that none of them releases
                self.fail(parked[-1], self.admission.exhausted(parked[-1]))
            return bool(parked)
        work, entry = due
        try:
            yield from self._serve(work, entry)
        except GeneratorExit:
            raise
        except BaseException as error:  # reading a property of a plugin's object may raise too
            self.fail(entry, as_error(entry.name, work.value, error))
        return True

    def _enough(self, oldest: TrackedRequest) -> bool:
        """Whether running requests fill the preferred batch size, so that the client's queued requests can wait."""
        try:
            # One may still start between two steps, so that it can be saved.
            return not self._stepped and self._full(oldest)
        except BaseException:  # a plugin's properties may raise anything; its step will report that
            return True

    def _full(self, lead: TrackedRequest) -> bool:
        return self._groups.size(lead) >= self.admission.preferred_width(lead)

    def _serve(self, work: Work, entry: TrackedRequest) -> Calling[None]:
        if work is _STEP:
            yield from self._step(entry)
        elif work is _FINISH:
            yield from self._finish(entry)
        else:
            self._stepped = False
            begun = self.clock()
            yield from self._admit(entry)
            self.queue.charge(entry, self.clock() - begun)

    def _admit(self, entry: TrackedRequest) -> Calling[None]:
        """Load the model and start the request, if memory allows; else its class waits."""
        begun = self.clock()
        entry.timing.queue = begun - entry.accepted
        where = "load"
        try:
            if not self.admission.may_admit(entry):
                self._wait_for_memory(entry)
                return
            yield from self._ensure_model(entry)
            loaded = self.clock()
            entry.timing.load += loaded - begun
            if entry.cancelled:
                self.cancel(entry)
                return
            where = "start"
            state, peak = yield from self.invoker.start(entry)
            key, done = check_key(entry.request.generator.batch_key(state)), bool(state.done)
        except NotEnoughMemory:
            self._wait_for_memory(entry)
            return
        except BaseException as error:  # a plugin may raise anything; see failures
            self.recovery.call_failed(entry, where, error)
            return
        entry.state, entry.key, entry.done = state, key, done
        self.invoker.choose_threads(entry, peak)
        if not self.admission.hold_state(entry):
            entry.state = entry.rng = entry.key = None
            self._wait_for_memory(entry)
            return
        self._began(entry, state, loaded)

    def _began(self, entry: TrackedRequest, state: State, loaded: float) -> None:
        self.admission.regroup(entry, group_of(entry))
        self._groups.file(entry)
        self.queue.admitted(entry)
        entry.started = self.clock()
        entry.timing.start = entry.started - loaded
        self.watcher.started(entry.number, entry.name, state.steps, loaded, entry.started)
        entry.emit(Started(state.steps))
        read = [text for media in entry.request.inputs.media() for text in media.notices]
        notify(entry, (*self._notices, *entry.request.notices, *read, *state.notices))
        if entry.done:
            self._done(entry, 0.0)
        elif self.saver is not None:
            self.saver.save_if_due(entry)

    def _ensure_model(self, entry: TrackedRequest) -> Calling[None]:
        """Put the request's model on the device. Raises NotEnoughMemory, or what loading raises."""
        request = entry.request
        if entry.model is not None and entry.model.resident:
            self.models.components.wait(
                entry.model.components
            )  # it may have been restored concurrently with another request's step
            entry.model.used = self.clock()
            return
        running = entry.state is not None
        if not self.models.loaded(request):
            entry.emit(Loading(entry.name, self.models.device))
        rank = self.admission.rank_for_step(entry) if running else self.admission.rank_for_admission(entry)
        model = yield from self.models.get(request, entry.limit_s, rank)
        if entry.model not in (None, model):
            raise GeneratorFailed(entry.name, f"the weights of `{entry.name}` changed while it ran")
        entry.model = model
        if model.streamed:
            notify(entry, (f"weights of {show_bytes(model.whole)} were streamed: they exceed the memory budget",))

    def _wait_for_memory(self, entry: TrackedRequest) -> None:
        """Wait until memory is released; fail if no running request can release any."""
        entry.model = None
        if refusal := self.admission.refusal(entry):
            self.fail(entry, refusal)
        elif self.admission.empty:
            self.fail(entry, self.admission.exhausted(entry))
        else:
            self.queue.block(entry)

    def _step(self, lead: TrackedRequest) -> Calling[None]:
        """Step a batch once; on failure every state stays unchanged."""
        if lead.done:  # it was parked before its finish
            self._done(lead, 0.0)
            return
        self._stepped = True
        begun, batch = self.clock(), [lead]
        try:
            batch = [lead := step_leader(lead, self.queue.lane(lead), self._full)]
            yield from self._ensure_model(lead)
            width = self.admission.width(lead, self._groups.most(lead))
            if width:
                batch = self._groups.batch(lead, width)
                self._prefetch()
                yield from self._step_together(batch)
            else:
                self._no_memory(lead)
        except NotEnoughMemory:
            self._no_memory(lead)
        except BaseException as error:  # a plugin may raise anything; see failures
            yield from self.recovery.step_failed(batch, error, begun)
        seconds = (self.clock() - begun) / len(batch)
        for entry in batch:
            if entry.done and not entry.ended:
                self._done(entry, seconds)
            else:
                self.queue.charge(entry, seconds)

    def _prefetch(self) -> None:
        """Restore an offloaded model concurrently with this step, if the next queued request needs it."""
        if self.models.any_offloaded:
            for entry in self.queue.waiting()[:1]:
                self.models.prefetch(entry.request)

    def _step_together(self, batch: list[TrackedRequest]) -> Calling[None]:
        made, begun, ended = yield from self.invoker.step(batch)
        numbers, positions = tuple(map(_number, batch)), tuple(map(_position, made))
        self.watcher.stepped(numbers, positions, batch[0].name, begun, ended)
        before, self._last_step = self._last_step, ended
        for entry, state in zip(batch, made, strict=True):
            if not entry.recent:
                entry.recent.append(max(entry.started, before))  # time spent waiting for other steps does not count
            try:
                due = self._advance(entry, state, len(batch), ended - begun, ended)
            except BaseException as error:  # a state's properties may raise anything
                self.fail(entry, as_error(entry.name, "step", error))
                continue
            if due:
                yield from self.live.preview(entry, state)
        if writing := [entry for entry in batch if entry.streams and entry.state is not None and not entry.done]:
            yield from self.live.stream(writing)

    def _no_memory(self, entry: TrackedRequest) -> None:
        """There is no memory for a running request now: park it, or fail it if it can never fit."""
        if refusal := self.admission.refusal(entry):
            self.fail(entry, refusal)
            return
        self._groups.remove(entry)
        self.queue.park(entry)

    def _advance(self, entry: TrackedRequest, state: State, width: int, seconds: float, now: float) -> bool:
        """Store the next state, report progress, get the next batch key. Returns whether a preview is due."""
        entry.done = bool(state.done)
        entry.state, entry.evictions = state, 0
        if entry.isolated_steps:
            entry.isolated_steps -= 1
        entry.width_min = min(entry.width_min or width, width)
        entry.width_max = max(entry.width_max, width)
        entry.timing.steps += seconds
        entry.recent.append(now)
        self.admission.state_changed(entry)
        entry.emit(Progress(state.position, state.steps, now - entry.started, entry.eta_s(state)))
        if len(state.notices) > len(entry.notices):
            notify(entry, state.notices)
        if entry.done:
            return False
        try:
            self._regroup(entry, state, width)
        except BaseException as error:  # a plugin may raise anything; see failures
            self.fail(entry, as_error(entry.name, "batch_key", error))
            return False
        if self.saver is not None:
            self.saver.save_if_due(entry)
        every = 0 if entry.previews_failed else entry.request.spec.preview_every
        return bool(every) and state.position % every == 0

    def _regroup(self, entry: TrackedRequest, state: State, width: int) -> None:
        """Put the request into the batch group of its next step, behind older requests."""
        key = check_key(entry.request.generator.batch_key(state))
        changed = self.invoker.reconsider(entry, width)
        if changed:
            entry.notices.append(changed)  # for the recipe; the user gets one notice, at the end
            entry.last_notice = "" if self._threads_reported else changed
            self._threads_reported = True
        same = same_key(key, entry.key)
        entry.stage_steps = entry.stage_steps + (entry.stage_steps >= 0) if same else 0
        if changed or not same:
            entry.key = key
            self.admission.regroup(entry, group_of(entry))
            self._groups.file(entry)

    def _done(self, entry: TrackedRequest, seconds: float) -> None:
        """The last step is complete: the request is due for its finish."""
        self._groups.remove(entry)
        self.queue.charge(entry, seconds, done=True)

    def _finish(self, lead: TrackedRequest) -> Calling[None]:
        """Make the output of a request whose steps are complete, and of others in the same call."""
        begun = self.clock()
        batch = [lead]
        try:
            yield from self._ensure_model(lead)
            alike = finish_batch(lead, self.queue.done(lead))
            width = self.admission.finish_width(lead, len(alike))
            if not width:
                raise NotEnoughMemory
            batch = alike[:width]
            media = yield from self.invoker.finish(batch)
            ended = self.clock()
            for entry, made in zip(batch, media, strict=True):
                self._finished(entry, made, len(batch), begun, ended)
        except NotEnoughMemory:
            self._no_memory(lead)
        except BaseException as error:  # a plugin may raise anything; see failures
            self.recovery.finish_failed(batch, error)
        for entry in batch:
            self.queue.charge(entry, (self.clock() - begun) / len(batch))

    def _finished(self, entry: TrackedRequest, made: Media, width: int, begun: float, ended: float) -> None:
        """The output exists: release the request and have the output stored."""
        entry.timing.finish = ended - begun
        entry.width_max = max(entry.width_max, width)
        self.watcher.finished(entry.number, entry.name, begun, ended)
        try:
            if entry.streams and isinstance(made, Text):
                entry.emit_rest(made.text)
            rest = self.complete(entry, made)
        except BaseException as error:  # code of a Media subclass may raise anything
            self.recovery.call_failed(entry, "finish", error)
            return
        self.completion.finish(entry, rest)
