"""Room: what fits on the device beside what is there, for the loop.

It joins ledger, models and what was measured. Weights and states are held all the time, and one call runs at a time, so
everything fits if they and the largest call do. A request is admitted beside the running ones of its class, never in
the place of their models; a model that only the other class uses may leave for it. This module calls no generator.

Try it: ``pytest tests/studio/engine/test_memory.py``
"""

from __future__ import annotations

from collections import Counter

from studio.engine.batching import choose_width
from studio.engine.cost.profile import Group, Measured, finishes
from studio.engine.entry import Entry
from studio.engine.memory.heap import Heap
from studio.engine.memory.ledger import Sum, tensor_bytes
from studio.engine.memory.model_cache import Model, Models, Rank
from studio.errors import OutOfMemory, TimedOut
from studio.generator import Generator
from studio.units import show_bytes

_COUNT_STATES_EVERY = 64  # steps; states may grow as they go


class Room:
    """The memory of one device, as the loop sees it. What the heap has grown by keeps batches narrow, and others out;
    a request that is alone goes on, as it could not wait for anything.
    """

    def __init__(self, models: Models, measured: Measured, heap: Heap, goal_s: float) -> None:
        self.models, self.measured, self.heap, self.goal_s = models, measured, heap, goal_s
        models.reserve = lambda generator, dtype: measured.least_peak(
            generator.name, generator.version, models.label, dtype
        )
        self.stuck: dict[Model, TimedOut] = {}  # models that an abandoned call still uses
        self._entered: dict[Entry, None] = {}
        self._users: Counter[tuple[Model, bool]] = Counter()
        self._groups: Counter[Group] = Counter()
        self._caps: dict[Group, int] = {}
        self._least_states: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        """Whether no request holds anything."""
        return not self._entered

    def entered(self) -> list[Entry]:
        """The requests that hold something, in the order they were admitted."""
        return list(self._entered)

    def sum(self, entry: Entry) -> Sum:
        """What a request needs at the least, as far as is known: its own sizes once it runs."""
        request = entry.request
        dtype = self.models.dtype_for(request)
        if entry.group is not None:
            step = self.measured.most_peak(entry.group)
        else:
            step = self.measured.least_peak(entry.name, request.generator.version, self.models.label, dtype)
        state = self.models.ledger.held(entry) or self._least_states.get(entry.name, 0)
        return Sum(self.models.claim(request), state, step)

    def refusal(self, entry: Entry) -> OutOfMemory | None:
        """Why a request can never run here, or None if it can."""
        budget = self.models.ledger.budget
        if budget is None or (needed := self.sum(entry)).total <= budget:
            return None
        message = f"`{entry.name}` does not fit into memory: {needed.exceeds(budget)}"
        return OutOfMemory(entry.name, message, hint="give it more with `--memory`, or ask for a smaller size")

    def crowded(self, entry: Entry) -> OutOfMemory:
        """Why a request that fits by itself cannot go on, when waiting would not help."""
        ledger = self.models.ledger
        message = (
            f"`{entry.name}` found no room: it needs {show_bytes(self.sum(entry).total)}, and {show_bytes(ledger.used)}"
            f" of the budget of {show_bytes(ledger.budget or 0)} are held by others"
        )
        return OutOfMemory(entry.name, message, hint="ask for fewer at once, or give it more with `--memory`")

    def may_admit(self, entry: Entry) -> bool:
        """Make room for a request that waits: its model, its state and the largest call of those then running."""
        if self.models.ledger.budget is None:
            return True
        needed = self.sum(entry)
        request = entry.request
        missing = self.models.missing(request)
        largest = max([needed.step, *map(self.measured.most_peak, self._groups)])
        grown = 0 if self.empty else self.heap.grown
        return self.models.make_room(missing + needed.state + largest + grown, self.beside(entry))

    def enter(self, entry: Entry) -> bool:
        """Count the state of a request that was started; False if there is no room for it."""
        size = tensor_bytes(entry.state, self.models.device)
        self._least_states[entry.name] = min(size, self._least_states.get(entry.name, size))
        if not self.models.make_room(size, self.beside(entry)):
            return False
        self.models.ledger.hold(entry, size)
        self._entered[entry] = None
        if entry.model is not None:
            self._users[entry.model, entry.background] += 1
        return True

    def regroup(self, entry: Entry, group: Group) -> None:
        """Note that a running request's next step belongs to `group`."""
        if entry.group is not None:
            self._forget(entry.group)
        entry.group = group
        self._groups[group] += 1

    def moved(self, entry: Entry) -> None:
        """Count a state that moved on: at its first steps, then now and then."""
        position = entry.state.position if entry.state else 0
        if position & (position - 1) == 0 or position % _COUNT_STATES_EVERY == 0:
            self.models.ledger.hold(entry, tensor_bytes(entry.state, self.models.device))

    def leave(self, entry: Entry) -> None:
        """Let go of what a request held."""
        if entry not in self._entered:
            return
        del self._entered[entry]
        self.models.ledger.release(entry)
        if entry.model is not None:
            self._users[entry.model, entry.background] -= 1
            if not self._users[entry.model, entry.background]:
                del self._users[entry.model, entry.background]
        if entry.group is not None:
            self._forget(entry.group)
            entry.group = None

    def width(self, lead: Entry, most: int) -> int:
        """How many may share the step that `lead` leads; 0 if there is no room even for it alone."""
        assert lead.group is not None
        return self._width(lead, lead.group, most)

    def wanted(self, lead: Entry) -> int:
        """How many should share the step that `lead` leads, if there were as many as its generator takes."""
        group, most = lead.group, lead.request.generator.max_batch
        kind = type(lead.request.generator)
        if group is None or lead.request.spec.invariant or kind.batch_key is Generator.batch_key:
            return 1
        most = min(most, self._caps.get(group, most))
        measured = self.measured
        return choose_width(measured.seconds(group), measured.sure(group), most, self.goal_s, measured.turn(group))

    def finishing(self, lead: Entry, most: int) -> int:
        """How many that are done may be finished in one call that `lead` leads; 0 if there is no room even for it
        alone.
        """
        assert lead.group is not None
        return self._width(lead, finishes(lead.group), most)

    def _width(self, lead: Entry, group: Group, most: int) -> int:
        measured, width = self.measured, 1
        if most > 1:
            most = min(most, self._caps.get(group, most))
            width = choose_width(measured.seconds(group), measured.sure(group), most, self.goal_s, measured.turn(group))
        if self.models.ledger.budget is None:
            return width
        while width > 1 and not self.models.make_room(measured.peak(group, width) + self.heap.grown, self.idle):
            width //= 2
        return width if width > 1 or self.models.make_room(measured.peak(group, 1), self.all_but(lead)) else 0

    def halve(self, group: Group, width: int) -> int:
        """Never again more than half of `width`."""
        self._caps[group] = max(1, width // 2)
        return self._caps[group]

    def idle(self, model: Model) -> int | None:
        """Rank for dropping only what nobody uses."""
        used = self._users[model, False] or self._users[model, True] or self._in_use(model)
        return None if used else 0

    def beside(self, entry: Entry) -> Rank:
        """Rank for making room beside the running requests of the entry's class."""

        def rank(model: Model) -> int | None:
            if self._users[model, entry.background] or self._in_use(model) or model is entry.model:
                return None
            return 1 if self._users[model, not entry.background] else 0

        return rank

    def all_but(self, entry: Entry) -> Rank:
        """Rank for giving one request the whole device: its own class's other models go last."""

        def rank(model: Model) -> int | None:
            if model is entry.model or self._in_use(model):
                return None
            return 2 if self._users[model, entry.background] else 1 if self._users[model, not entry.background] else 0

        return rank

    def _in_use(self, model: Model) -> bool:
        """Whether an abandoned call, not yet over, still uses the model."""
        error = self.stuck.get(model)
        if error is not None and error.over():
            del self.stuck[model]
            return False
        return error is not None

    def _forget(self, group: Group) -> None:
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]
