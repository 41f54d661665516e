"""Admission: what fits into the memory of a device, for the loop.

It combines the ledger, the model cache and the measured profile. Weights and states stay in memory, and one call runs
at a time, so everything fits if weights, states and the largest call fit. Admitting a request never evicts a model that
a running request of its own class uses; a model that only the other class uses may be evicted.

Try it: ``pytest tests/studio/engine/test_memory.py``
"""

from __future__ import annotations

from collections import Counter

from studio.engine.cost.profile import Group, Profile, finishes
from studio.engine.memory.heap import Heap
from studio.engine.memory.ledger import MemoryNeed, tensor_bytes
from studio.engine.memory.model import Model, Rank
from studio.engine.memory.model_cache import ModelCache
from studio.engine.scheduling.batching import choose_width
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import OutOfMemory, TimedOut
from studio.generator import Generator
from studio.units import show_bytes

_COUNT_STATES_EVERY = 64  # steps; states may grow as they go


class Admission:
    """The memory of one device, as the loop sees it. Untracked memory (see `heap`) reduces batch sizes and delays other
    requests; the only running request goes on, as no memory would be released if it waited.
    """

    def __init__(self, models: ModelCache, profile: Profile, heap: Heap, goal_s: float) -> None:
        self.models, self.profile, self.heap, self.goal_s = models, profile, heap, goal_s
        models.reserve = lambda generator, dtype: profile.min_peak(
            generator.name, generator.version, models.label, dtype
        )
        self.stuck: dict[Model, TimedOut] = {}  # models that an abandoned call still uses
        self._admitted: dict[TrackedRequest, None] = {}
        self._users: Counter[tuple[Model, bool]] = Counter()
        self._groups: Counter[Group] = Counter()
        self._caps: dict[Group, int] = {}
        self._least_states: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        """Whether no request holds memory."""
        return not self._admitted

    def admitted_requests(self) -> list[TrackedRequest]:
        """The requests that hold memory, in the order of admission."""
        return list(self._admitted)

    def need(self, entry: TrackedRequest) -> MemoryNeed:
        """The least memory that a request needs, as far as is known; once it runs, its own sizes."""
        request = entry.request
        dtype = self.models.dtype_for(request)
        if entry.group is not None:
            step = self.profile.max_peak(entry.group)
        else:
            step = self.profile.min_peak(entry.name, request.generator.version, self.models.label, dtype)
        state = self.models.ledger.held(entry) or self._least_states.get(entry.name, 0)
        return MemoryNeed(self.models.claim(request), state, step)

    def refusal(self, entry: TrackedRequest) -> OutOfMemory | None:
        """Why a request can never run here, or None if it can."""
        budget = self.models.ledger.budget
        if budget is None or (needed := self.need(entry)).total <= budget:
            return None
        message = f"`{entry.name}` does not fit into memory: {needed.exceeds(budget)}"
        return OutOfMemory(entry.name, message, hint="raise `--memory`, or use a smaller size")

    def exhausted(self, entry: TrackedRequest) -> OutOfMemory:
        """The error of a request that would fit by itself, when waiting would not help."""
        ledger = self.models.ledger
        message = (
            f"not enough memory for `{entry.name}`: it needs {show_bytes(self.need(entry).total)}, but"
            f" {show_bytes(ledger.used)} of the budget of {show_bytes(ledger.budget or 0)} are in use"
        )
        return OutOfMemory(entry.name, message, hint="run fewer requests at once, or raise `--memory`")

    def may_admit(self, entry: TrackedRequest) -> bool:
        """Evict models, if necessary, for a queued request: its model, its state and the largest call that may run."""
        if self.models.ledger.budget is None:
            return True
        needed = self.need(entry)
        request = entry.request
        missing = self.models.missing(request)
        largest = max([needed.step, *map(self.profile.max_peak, self._groups)])
        untracked = 0 if self.empty else self.heap.untracked
        return self.models.evict_for(missing + needed.state + largest + untracked, self.rank_for_admission(entry))

    def hold_state(self, entry: TrackedRequest) -> bool:
        """Count the state of a request that has started; False if it does not fit."""
        size = tensor_bytes(entry.state, self.models.device)
        self._least_states[entry.name] = min(size, self._least_states.get(entry.name, size))
        if not self.models.evict_for(size, self.rank_for_admission(entry)):
            return False
        self.models.ledger.hold(entry, size)
        self._admitted[entry] = None
        if entry.model is not None:
            self._users[entry.model, entry.background] += 1
        return True

    def regroup(self, entry: TrackedRequest, group: Group) -> None:
        """Note that a running request's next step belongs to `group`."""
        if entry.group is not None:
            self._forget(entry.group)
        entry.group = group
        self._groups[group] += 1

    def state_changed(self, entry: TrackedRequest) -> None:
        """Measure a state after a step: at steps 1, 2, 4, 8 …, then at regular intervals."""
        position = entry.state.position if entry.state else 0
        if position & (position - 1) == 0 or position % _COUNT_STATES_EVERY == 0:
            self.models.ledger.hold(entry, tensor_bytes(entry.state, self.models.device))

    def release(self, entry: TrackedRequest) -> None:
        """Release the memory of a request."""
        if entry not in self._admitted:
            return
        del self._admitted[entry]
        self.models.ledger.release(entry)
        if entry.model is not None:
            self._users[entry.model, entry.background] -= 1
            if not self._users[entry.model, entry.background]:
                del self._users[entry.model, entry.background]
        if entry.group is not None:
            self._forget(entry.group)
            entry.group = None

    def width(self, lead: TrackedRequest, most: int) -> int:
        """The batch size of the step that `lead` leads; 0 if not even `lead` fits."""
        assert lead.group is not None
        return self._width(lead, lead.group, most)

    def preferred_width(self, lead: TrackedRequest) -> int:
        """The best batch size of the step that `lead` leads, given unlimited requests."""
        group, most = lead.group, lead.request.generator.max_batch
        kind = type(lead.request.generator)
        if group is None or lead.request.spec.invariant or kind.batch_key is Generator.batch_key:
            return 1
        most = min(most, self._caps.get(group, most))
        profile = self.profile
        return choose_width(profile.seconds(group), profile.reliable(group), most, self.goal_s, profile.count(group))

    def finish_width(self, lead: TrackedRequest, most: int) -> int:
        """The batch size of the finish call that `lead` leads; 0 if not even `lead` fits."""
        assert lead.group is not None
        return self._width(lead, finishes(lead.group), most)

    def _width(self, lead: TrackedRequest, group: Group, most: int) -> int:
        profile, width = self.profile, 1
        if most > 1:
            most = min(most, self._caps.get(group, most))
            width = choose_width(
                profile.seconds(group), profile.reliable(group), most, self.goal_s, profile.count(group)
            )
        if self.models.ledger.budget is None:
            return width
        while width > 1 and not self.models.evict_for(profile.peak(group, width) + self.heap.untracked, self.rank_idle):
            width //= 2
        return width if width > 1 or self.models.evict_for(profile.peak(group, 1), self.rank_for_step(lead)) else 0

    def halve(self, group: Group, width: int) -> int:
        """Limit steps of this group to half of `width`, for good. Returns the new limit."""
        self._caps[group] = max(1, width // 2)
        return self._caps[group]

    def halve_finish(self, group: Group, width: int) -> int:
        """As `halve`, for the finish calls of states of this group."""
        return self.halve(finishes(group), width)

    def rank_idle(self, model: Model) -> int | None:
        """Eviction rank: only models that no request uses."""
        used = self._users[model, False] or self._users[model, True] or self._in_use(model)
        return None if used else 0

    def rank_for_admission(self, entry: TrackedRequest) -> Rank:
        """Eviction rank for admitting a request: models in use by its own class stay."""

        def rank(model: Model) -> int | None:
            if self._users[model, entry.background] or self._in_use(model) or model is entry.model:
                return None
            return 1 if self._users[model, not entry.background] else 0

        return rank

    def rank_for_step(self, entry: TrackedRequest) -> Rank:
        """Eviction rank that may give one request the whole device: models in use by its own class go last."""

        def rank(model: Model) -> int | None:
            if model is entry.model or self._in_use(model):
                return None
            return 2 if self._users[model, entry.background] else 1 if self._users[model, not entry.background] else 0

        return rank

    def _in_use(self, model: Model) -> bool:
        """Whether an abandoned call still uses the model."""
        error = self.stuck.get(model)
        if error is not None and error.over():
            del self.stuck[model]
            return False
        return error is not None

    def _forget(self, group: Group) -> None:
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]
