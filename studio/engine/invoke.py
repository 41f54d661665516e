"""Actions: what generators are asked to do for the loop (start, step, preview, finish), measured and checked.

Each runs as a call of its own with the request's number of threads, the model's attention and within its time limit;
what it took and who served its attention is noted, and what it returned is checked, for NaN and infinity too (see
`finite`). After a step the same one may be tried once more with another number of threads (see `threads`). This module
knows nothing of whose turn it is, and decides nothing when a call fails.

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from studio.attention.serving import lending
from studio.devices import Device, torch_setup
from studio.devices.memory import Gauge
from studio.engine.calls.call import Calling, ask
from studio.engine.calls.failures import check_delta, check_finish, check_media, check_state, check_step
from studio.engine.calls.fingerprint import fingerprint
from studio.engine.cost.cpu_threads import Threads
from studio.engine.cost.profile import Measured, finishes
from studio.engine.entry import Entry, group_of
from studio.engine.memory.heap import Heap
from studio.errors import TimedOut
from studio.finite import NotFinite, look, read_late
from studio.generator import Rng, State
from studio.media import Media

T = TypeVar("T")
_GAUGED_FIRST, _GAUGED_EVERY = 64, 64  # steps whose memory is read; reading it takes 70 µs, and 200 if caches are cold


class Actions:
    """Has generators called on `device`, one call at a time; `gauge` reads their memory, `heap` makes room for it."""

    def __init__(
        self, clock: Callable[[], float], measured: Measured, gauge: Gauge, heap: Heap, threads: Threads,
        device: Device,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.measured, self.gauge, self.heap, self.threads, self.device = measured, gauge, heap, threads, device
        self._before: list[tuple[Entry, State, int]] = []  # states as they were, while they are stepped

    def start(self, entry: Entry) -> Calling[tuple[State, int | None]]:
        """Return the first state, or the one to go on from, and the memory that it took; sets `entry.rng`.

        The Rng is a fresh one each time, as a start may be tried again. Raises what the generator raises, Garbage,
        TimedOut.
        """
        request, model = entry.request, entry.lent
        rng, generator, saved = Rng(request.spec.seed), request.generator, request.resume
        begin = generator.start_isolated if request.spec.invariant else generator.start

        def start() -> State:
            state: State = begin(model, request.inputs, rng)
            if saved is not None:  # what `start` made tells the class of the state, and has what is not saved
                return saved.state(check_state(state), self.device.name)
            entry.late[:] = [("start", total) for total in look(None, state)]
            return state

        self.heap.make_room(self.measured.greatest_peak("cpu"))  # its shape, which says how much, is not known yet
        entry.rng = rng
        state, peak = yield from self._gauged([entry], start, first=False)
        if saved is not None:
            width = saved.progress.batch_width
            entry.width_min, entry.width_max = width.min, width.max
            entry.timing.steps = saved.progress.seconds
        return check_state(state), peak

    def settle(self, entry: Entry, peak: int | None) -> None:
        """Now that its shape is known: note what the start took, and choose the threads for the rest.

        An invariant request takes torch's own number, so that its bytes depend on nothing that was measured.
        """
        group = group_of(entry)
        self.measured.learn_peak(group._replace(call="start"), peak)
        request = entry.request
        if request.spec.threads is not None and self.threads.free:
            entry.threads = request.spec.threads
        elif entry.model is not None and entry.model.weights:
            entry.threads = self.threads.usual if request.spec.invariant else self.threads.standing(group)

    def reconsider(self, entry: Entry, width: int) -> str:
        """Change the threads of a running request where others are much faster; returns what to tell of it, or ''."""
        group, spec = entry.group, entry.request.spec
        if group is None or entry.threads is None or spec.invariant or spec.threads is not None:
            return ""
        better = self.threads.better(group, width)
        if better is None or entry.state is None:
            return ""
        was, entry.threads = entry.threads, better
        return f"{was} threads were slow beside other work; from step {entry.state.position + 1} on it is {better}"

    def step(self, batch: Sequence[Entry]) -> Calling[tuple[list[State], float, float]]:
        """Step a batch once; return the next states, when it began and when it ended. Raises as `start` does."""
        lead = batch[0]
        group, generator, model = lead.group, lead.request.generator, lead.lent
        assert group is not None
        states = [entry.state for entry in batch if entry.state is not None]
        limit_s = lead.limit_s if len(batch) == 1 else max(entry.limit_s for entry in batch)
        self._before = list(zip(batch, states, map(fingerprint, states), strict=True))
        self.heap.make_room(self.measured.peak(group, len(batch)))
        turn = self.measured.turn(group)
        gauged = turn < _GAUGED_FIRST or not turn % _GAUGED_EVERY
        if gauged:
            self.gauge.begin(first=not self.measured.weighed(group, len(batch)))
        begun = self.clock()
        late: list[list[Any]] = []

        def step() -> Any:
            made = generator.step(model, states)
            if isinstance(made, Sequence):  # else it is refused below
                late.extend(look(old, new) for old, new in zip(states, made, strict=False))
            return made

        made = yield from self._run(batch, step, limit_s)
        ended = self.clock()
        checked = check_step(states, made)
        self._before = []
        for entry, state, totals in zip(batch, checked, late, strict=True):
            entry.late += [(f"step {state.position}", total) for total in totals]
        self.measured.learn(group, len(batch), ended - begun, self.gauge.peak() if gauged else None)
        self.threads.stepped(group, len(batch), ended - begun)
        other = self.threads.due(group, len(batch))
        if other is not None:
            yield from self._try(batch, states, other, limit_s)
        return checked, begun, ended

    def spoilt(self) -> list[Entry]:
        """After a step that failed: those whose states it had changed before it did."""
        before, self._before = self._before, []
        return [entry for entry, state, was in before if fingerprint(state) != was]

    def preview(self, entry: Entry, state: State) -> Calling[Media | None]:
        """Return a preview, if the generator makes one now. Raises as `start` does."""
        generator = entry.request.generator
        model = entry.lent

        def preview() -> Media | None:
            media = generator.preview(model, state)
            if media is not None:
                _read([entry])
            return media

        media = yield from self._run([entry], preview, entry.limit_s)
        return None if media is None else check_media(generator, media)

    def deltas(self, batch: Sequence[Entry]) -> Calling[list[str | BaseException]]:
        """What each has written since it was last asked, or what asking for it raised. Raises as `start` does."""
        lead = batch[0]
        generator, model = lead.request.generator, lead.lent

        def delta(entry: Entry) -> str | BaseException:
            try:
                return check_delta(generator.delta(model, entry.state, entry.told_length))
            except BaseException as error:  # a plugin may raise anything; see failures
                return error

        return (yield from self._run(batch, lambda: [delta(entry) for entry in batch], lead.limit_s))

    def finish(self, batch: Sequence[Entry]) -> Calling[list[Media]]:
        """Make the media of states that are done, in one call. Raises as `start` does."""
        lead = batch[0]
        group, generator, model = lead.group, lead.request.generator, lead.lent
        assert group is not None
        states = [entry.state for entry in batch]
        begun = self.clock()

        def finish() -> Sequence[Media]:
            made = generator.finish_many(model, states) if len(states) > 1 else [generator.finish(model, states[0])]
            _read(batch)
            for entry in batch:
                entry.facts = dict(generator.facts(model, entry.request.inputs))
            return made

        self.heap.make_room(self.measured.peak(finishes(group), len(batch)))
        first = not self.measured.weighed(finishes(group), len(batch))
        made, peak = yield from self._gauged(batch, finish, first=first)
        media = check_finish(generator, made, len(batch))
        self.measured.learn(finishes(group), len(batch), self.clock() - begun, peak)
        return media

    def _try(self, batch: Sequence[Entry], states: list[State], threads: int, limit_s: float) -> Calling[None]:
        """Make the step once more with another number of threads, and throw away what it returns."""
        lead = batch[0]
        group, generator, model = lead.group, lead.request.generator, lead.lent
        assert group is not None
        begun = self.clock()
        try:
            yield from self._run(batch, lambda: generator.step(model, states), limit_s, threads)
        except TimedOut:
            raise
        except BaseException:  # the step itself was made: a trial that fails is nobody's failure
            self.threads.give_up(group)
            return
        self.threads.tried(group, threads, len(batch), self.clock() - begun)

    def _gauged(self, batch: Sequence[Entry], work: Callable[[], T], *, first: bool) -> Calling[tuple[T, int | None]]:
        self.gauge.begin(first=first)
        made = yield from self._run(batch, work, batch[0].limit_s)
        return made, self.gauge.peak()

    def _run(
        self, batch: Sequence[Entry], work: Callable[[], T], limit_s: float, threads: int | None = None
    ) -> Calling[T]:
        lead = batch[0]
        threads = threads or lead.threads or self.threads.usual
        serving = lead.model.attention if lead.model else None

        def run() -> T:
            torch_setup.use_threads(threads)
            with lending(serving) as used:
                try:
                    made = work()
                    self.device.settle()  # what is timed, limited and blamed is the run, not the launch
                except NotFinite as error:
                    raise _first(batch, error).because(lead.lent) from None
            if used:
                for entry in batch:
                    entry.attention |= used
            return made

        return ask(lead.name, run, limit_s)


def _read(batch: Sequence[Entry]) -> None:
    """Read the sums that were left on the device, now that what is made of the states was. Raises NotFinite."""
    for entry in batch:
        read_late(entry.late)
        entry.late.clear()


def _first(batch: Sequence[Entry], error: NotFinite) -> NotFinite:
    """Where it arose: an earlier step of one request, if its sums were not read yet, else where it was found."""
    if len(batch) == 1:
        try:
            _read(batch)
        except NotFinite as earlier:
            return earlier
    return error
