"""Invoker: calls of generators for the loop (start, step, preview, finish), measured and checked.

Each call runs with the request's number of CPU threads, the model's attention dispatch and a timeout. Its time, peak
memory and attention backends are recorded, and what it returned is checked, also for NaN and infinity (see `finite`).
After a step the same step may run once more with another number of threads (see `cpu_threads`).

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from studio.attention.current import use_dispatch
from studio.devices import torch_setup
from studio.devices.memory import MemoryProbe
from studio.engine.calls.call import Calling, ask
from studio.engine.calls.failures import check_delta, check_finish, check_preview, check_state, check_step
from studio.engine.calls.fingerprint import fingerprint
from studio.engine.cost.cpu_threads import ThreadTuner
from studio.engine.cost.profile import Group, Profile, finishes
from studio.engine.memory.components import Components
from studio.engine.memory.heap import Heap
from studio.engine.scheduling.tracked import TrackedRequest, group_of
from studio.errors import TimedOut
from studio.finite import NotFinite, look, read_late
from studio.generator import Rng, State
from studio.media import Media

T = TypeVar("T")
_PROBED_FIRST, _PROBED_EVERY = 64, 64  # calls whose memory is measured; that takes 70 µs, and 200 if caches are cold


class Invoker:
    """Calls generators on one device, one call at a time. `probe` measures their memory, `heap` trims freed memory, and
    streamed layers of `components` stay in what a call leaves free.
    """

    def __init__(
        self, clock: Callable[[], float], profile: Profile, probe: MemoryProbe, heap: Heap, threads: ThreadTuner,
        components: Components,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.profile, self.probe, self.heap, self.threads = profile, probe, heap, threads
        self.components, self.device = components, components.device
        self._before: list[
            tuple[TrackedRequest, State, int]
        ] = []  # input states with their fingerprints, during a step

    def start(self, entry: TrackedRequest) -> Calling[tuple[State, int | None]]:
        """Return the first state, or the saved state to resume from, and the peak memory in bytes; sets `entry.rng`.

        The Rng is new each time, as a start may be retried. Raises what the generator raises, InvalidReturn, TimedOut.
        """
        request, model = entry.request, entry.model_value
        rng, generator, saved = Rng(request.spec.seed), request.generator, request.resume
        begin = generator.start_isolated if request.spec.invariant else generator.start

        def start() -> State:
            state: State = begin(model, request.inputs, rng)
            if saved is not None:  # the state from `start` has the class, and the fields that are not saved
                return saved.state(check_state(state), self.device.name)
            entry.late[:] = [("start", total) for total in look(None, state)]
            return state

        # Its batch key, and so its peak, is not known yet.
        if self.components.any_streamed:
            peak = self.profile.start_peak(request.generator.name, request.generator.version, self.device.label)
            self._begin_streamed(peak)
        else:
            self.heap.trim_for(self.profile.device_peak("cpu"))
        entry.rng = rng
        self.probe.begin(first=False)
        state = yield from self._run([entry], start, entry.limit_s)
        peak = self._peak()
        if saved is not None:
            width = saved.progress.batch_width
            entry.width_min, entry.width_max = width.min, width.max
            entry.timing.steps = saved.progress.seconds
        return check_state(state), peak

    def choose_threads(self, entry: TrackedRequest, peak: int | None) -> None:
        """Record the peak of the start, now that the batch key is known, and choose the number of CPU threads.

        An invariant request uses torch's default, so that its bytes do not depend on measurements.
        """
        group = group_of(entry)
        self.profile.record_peak(group._replace(call="start"), peak)
        request = entry.request
        if request.spec.threads is not None and self.threads.free:
            entry.threads = request.spec.threads
        elif entry.model is not None and entry.model.weights:
            entry.threads = self.threads.usual if request.spec.invariant else self.threads.standing(group)

    def reconsider(self, entry: TrackedRequest, width: int) -> str:
        """Change the number of threads of a running request if another is much faster; returns a notice, or ''."""
        group, spec = entry.group, entry.request.spec
        if group is None or entry.threads is None or spec.invariant or spec.threads is not None:
            return ""
        better = self.threads.better(group, width)
        if better is None or entry.state is None:
            return ""
        was, entry.threads = entry.threads, better
        return f"{was} CPU threads were slow: using {better} from step {entry.state.position + 1}"

    def step(self, batch: Sequence[TrackedRequest]) -> Calling[tuple[list[State], float, float]]:
        """Step a batch once; returns the next states, start time and end time. Raises what `start` raises."""
        lead = batch[0]
        group, generator, model = lead.group, lead.request.generator, lead.model_value
        assert group is not None
        states = [entry.state for entry in batch if entry.state is not None]
        limit_s = lead.limit_s if len(batch) == 1 else max(entry.limit_s for entry in batch)
        self._before = list(zip(batch, states, map(fingerprint, states), strict=True))
        self._begin(group, len(batch))
        probed = self._probe_if_due(group, len(batch))
        begun = self.clock()
        late: list[list[Any]] = []

        def step() -> Any:
            made = generator.step(model, states)
            if type(made) is list or isinstance(made, Sequence):  # else it is rejected below
                late.extend(map(look, states, made))
            return made

        made = yield from self._run(batch, step, limit_s)
        ended = self.clock()
        checked = check_step(states, made)
        self._before = []
        for entry, state, totals in zip(batch, checked, late, strict=True):
            entry.late += [(f"step {state.position}", total) for total in totals]
        self.profile.record(group, len(batch), ended - begun, self._peak() if probed else None)
        self.threads.stepped(group, len(batch), ended - begun)
        other = self.threads.due(group, len(batch))
        if other is not None:
            yield from self._try(batch, states, other, limit_s)
        return checked, begun, ended

    def mutated(self) -> list[TrackedRequest]:
        """After a failed step: the requests whose states the step has mutated."""
        before, self._before = self._before, []
        return [entry for entry, state, was in before if fingerprint(state) != was]

    def preview(self, entry: TrackedRequest, state: State) -> Calling[Media | None]:
        """Return a preview, if the generator makes one now. Raises what `start` raises."""
        generator = entry.request.generator
        model = entry.model_value

        def preview() -> Media | None:
            media = generator.preview(model, state)
            if media is not None:
                _read([entry])
            return media

        media = yield from self._run([entry], preview, entry.limit_s)
        return None if media is None else check_preview(generator, media)

    def deltas(self, batch: Sequence[TrackedRequest]) -> Calling[list[str | BaseException]]:
        """The new text of each request, or the exception of its `delta`. Raises what `start` raises."""
        lead = batch[0]
        generator, model = lead.request.generator, lead.model_value

        def delta(entry: TrackedRequest) -> str | BaseException:
            try:
                return check_delta(generator.delta(model, entry.state, entry.emitted_length))
            except BaseException as error:  # a plugin may raise anything; see failures
                return error

        return (yield from self._run(batch, lambda: [delta(entry) for entry in batch], lead.limit_s))

    def finish(self, batch: Sequence[TrackedRequest]) -> Calling[list[Media]]:
        """Make the output of complete states, in one call. Raises what `start` raises."""
        lead = batch[0]
        group, generator, model = lead.group, lead.request.generator, lead.model_value
        assert group is not None
        states = [entry.state for entry in batch]
        begun = self.clock()

        def finish() -> Sequence[Media]:
            made = generator.finish_many(model, states) if len(states) > 1 else [generator.finish(model, states[0])]
            _read(batch)
            for entry in batch:
                entry.facts = dict(generator.facts(model, entry.request.inputs))
            return made

        self._begin(finishes(group), len(batch))
        probed = self._probe_if_due(finishes(group), len(batch))
        made = yield from self._run(batch, finish, lead.limit_s)
        peak = self._peak() if probed else None
        media = check_finish(generator, made, len(batch))
        self.profile.record(finishes(group), len(batch), self.clock() - begun, peak)
        return media

    def _try(self, batch: Sequence[TrackedRequest], states: list[State], threads: int, limit_s: float) -> Calling[None]:
        """Run the step once more with another number of threads, and discard the result."""
        lead = batch[0]
        group, generator, model = lead.group, lead.request.generator, lead.model_value
        assert group is not None
        begun = self.clock()
        try:
            yield from self._run(batch, lambda: generator.step(model, states), limit_s, threads)
        except TimedOut:
            raise
        except BaseException:  # the step itself succeeded: a failed trial affects no request
            self.threads.give_up(group)
            return
        self.threads.tried(group, threads, len(batch), self.clock() - begun)

    def _begin(self, group: Group, width: int) -> None:
        """Free memory for a call, as far as its peak is known. It stays unknown where the probe measures nothing."""
        peak = self.profile.peak(group, width)
        if not self.components.any_streamed:
            self.heap.trim_for(peak)
            return
        known = self.profile.estimated(group, width) or self.profile.count(group) > 0
        self._begin_streamed(peak if known else None)

    def _begin_streamed(self, peak: int | None) -> None:
        """Trim freed memory, and let streamed layers stay in what a call with this peak leaves free, if it is known."""
        self.heap.trim_for((peak or 0) + self.components.room)
        self.components.begin_call(peak, self.heap.beyond)

    def _peak(self) -> int | None:
        """The peak of the call besides streamed layers that have come to stay."""
        found = self.probe.peak()
        return None if found is None else max(0, found - self.components.grown)

    def _probe_if_due(self, group: Group, width: int) -> bool:
        """Begin to measure the memory of a call: of the first calls of its group, now and then, and at a new width."""
        turn, known = self.profile.count(group), self.profile.peak_known(group, width)
        if known and turn >= _PROBED_FIRST and turn % _PROBED_EVERY:
            return False
        self.probe.begin(first=not known)
        return True

    def _run(
        self, batch: Sequence[TrackedRequest], work: Callable[[], T], limit_s: float, threads: int | None = None
    ) -> Calling[T]:
        lead = batch[0]
        threads = threads or lead.threads or self.threads.usual
        serving = lead.model.attention if lead.model else None

        def run() -> T:
            torch_setup.use_threads(threads)
            with use_dispatch(serving) as used:
                try:
                    made = work()
                    self.device.synchronize()  # so that times, timeouts and errors are of the run, not the launch
                except NotFinite as error:
                    raise _first(batch, error).because(lead.model_value) from None
            if used:
                for entry in batch:
                    entry.attention |= used
            return made

        return ask(lead.name, run, limit_s)


def _read(batch: Sequence[TrackedRequest]) -> None:
    """Read the sums of states (for the NaN check) that are still on the device. Raises NotFinite."""
    for entry in batch:
        read_late(entry.late)
        entry.late.clear()


def _first(batch: Sequence[TrackedRequest], error: NotFinite) -> NotFinite:
    """The earliest step where the value arose, if its sums were not read yet, else where it was found."""
    if len(batch) == 1:
        try:
            _read(batch)
        except NotFinite as earlier:
            return earlier
    return error
