"""Continuous batching: which requests share a step or a finish call, and the batch size. Pure.

`Groups` keeps the running requests by what they must have in common. `choose_width` chooses the batch size from
measured step times: it doubles while that raises throughput (states per second) and while a step stays within the
latency goal, since a new request waits for the step in flight. As the oldest requests go first, what a batch leaves
over is stepped later in a smaller one; so that counts, too.

Try it: ``pytest tests/studio/engine/scheduling/test_batching.py``
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from operator import attrgetter

from studio.engine.scheduling.tracked import TrackedRequest
from studio.generator import Generator

_number = attrgetter("number")
LATENCY_GOAL_S = 1.0  # a shared step that would take longer gets a smaller batch
GAIN = 1.03  # a larger batch must be faster by this factor
REMEASURE_EVERY = (
    256  # steps after which the next larger and next smaller batch sizes are tried again, as the load may have changed
)


class _Key:
    """A batch key that is hashed once and whose comparison never raises, whatever the plugin's object does."""

    __slots__ = ("_hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value, self._hash = value, hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and same_key(self.value, other.value)


class Groups:
    """Running requests by what they must have in common to share a step, in order of acceptance."""

    def __init__(self) -> None:
        self._filed: dict[TrackedRequest, OrderedDict[TrackedRequest, None]] = {}
        self._tables: dict[Hashable, OrderedDict[TrackedRequest, None]] = {}

    def file(self, entry: TrackedRequest) -> None:
        """Add a request to its group, or move it to another after its batch key changed."""
        self.remove(entry)
        own = (entry.background, entry.request.generator, entry.model, entry.threads)
        table = self._tables.setdefault((own, _Key(entry.key)), OrderedDict())
        last = next(reversed(table), entry)
        table[entry] = None
        if entry.number < last.number:
            for each in sorted(table, key=_number):
                table.move_to_end(each)
        self._filed[entry] = table

    def size(self, entry: TrackedRequest) -> int:
        """The size of a request's group; at least 1."""
        return len(self._filed.get(entry, (entry,)))

    def remove(self, entry: TrackedRequest) -> None:
        """Remove a request from its group, if it is in one."""
        table = self._filed.pop(entry, None)
        if table is None:
            return
        del table[entry]
        if not table:
            for key in [key for key, each in self._tables.items() if each is table]:
                del self._tables[key]

    def most(self, lead: TrackedRequest) -> int:
        """How many requests may share a step that `lead` leads. Adds `lead` to its group if necessary."""
        if lead not in self._filed:
            self.file(lead)
        if _isolated(lead):
            return 1
        return min(len(self._filed[lead]), lead.request.generator.max_batch)

    def batch(self, lead: TrackedRequest, width: int) -> list[TrackedRequest]:
        """`lead` and up to `width` - 1 other requests of its group."""
        batch = [lead]
        if width > 1:
            for other in self._filed[lead]:
                if len(batch) == width:
                    break
                if other is not lead and not _isolated(other):
                    batch.append(other)
        return batch


def finish_batch(lead: TrackedRequest, done: Iterable[TrackedRequest]) -> list[TrackedRequest]:
    """`lead` and the `done` requests that may be finished in the same call."""
    generator = lead.request.generator
    if type(generator).finish_many is Generator.finish_many or _isolated(lead):
        return [lead]
    others = [
        each
        for each in done
        if each is not lead
        and each.request.generator is generator
        and (each.group, each.model) == (lead.group, lead.model)
        and same_key(each.key, lead.key)
        and not _isolated(each)
    ]
    return [lead, *others[: generator.max_batch - 1]]


def step_leader(
    oldest: TrackedRequest, lane: Iterable[TrackedRequest], full: Callable[[TrackedRequest], bool]
) -> TrackedRequest:
    """The request of a lane that leads its next step: the oldest; but every other time, while its batch is not `full`,
    the oldest one in an earlier stage (prefill, say), which can join that batch once it has caught up.
    """
    behind = None
    if oldest.stage_steps > 0 and not oldest.gave_way:
        behind = next((each for each in lane if _is_behind(each, oldest)), None)
        if behind is not None and full(oldest):
            behind = None
    oldest.gave_way = behind is not None
    return oldest if behind is None else behind


def _is_behind(entry: TrackedRequest, oldest: TrackedRequest) -> bool:
    if entry.state is None or oldest.state is None or entry.state.position >= oldest.state.position:
        return False
    return not (_isolated(entry) or same_key(entry.key, oldest.key))


def _isolated(entry: TrackedRequest) -> bool:
    return entry.isolated_steps > 0 or entry.request.spec.invariant


def same_key(one: Hashable, other: Hashable) -> bool:
    """Whether two batch keys are equal; keys that cannot be compared are not."""
    try:
        return bool(one == other)
    except BaseException:  # of a plugin's object
        return False


def choose_width(known: Mapping[int, float], sure: Container[int], most: int, goal_s: float, turn: int) -> int:
    """The batch size of the next step, at most `most`.

    `known` maps batch sizes to seconds per step, and `sure` has the batch sizes with enough measurements to rely on;
    `turn` is the number of steps measured. Without measurements it is 1, as the memory use is not known either.
    """
    usable = sorted(width for width in known if width <= most)
    if not usable or most == 1:
        return 1
    widest = usable[-1]
    wider = min(most, 2 * widest)  # worst case: time grows in proportion to the batch size
    if wider not in known and _pays(known, sure, usable) and known[widest] * wider / widest <= 2 * goal_s:
        return wider
    if widest not in sure and (widest == 1 or known[widest] <= goal_s):
        return widest
    seconds = {width: known[width] for width in usable}
    if most not in seconds and (above := [width for width in known if width > most]):
        seconds[most] = _between(known, widest, min(above), most)
    fitting = [width for width in seconds if width == 1 or seconds[width] <= goal_s] or [min(seconds)]
    # Few candidates: among many, one that happened to be measured while nothing else ran would win.
    few = [width for width in fitting if width == most or not width & (width - 1)] or fitting
    totals = {width: _seconds_for_all(seconds, width, most) for width in few}
    fastest = min(totals.values())
    chosen = min(width for width in few if totals[width] <= fastest * GAIN)
    if turn % REMEASURE_EVERY == REMEASURE_EVERY - 1:
        return min((width for width in fitting if width > chosen), default=chosen)
    if turn % REMEASURE_EVERY == REMEASURE_EVERY // 2 - 1:
        return max((width for width in fitting if width < chosen), default=chosen)
    return chosen


def _pays(known: Mapping[int, float], sure: Container[int], usable: list[int]) -> bool:
    """Whether the largest known batch has a higher throughput than one of half its size; yes until that is reliable.

    A batch that is only a little smaller has nearly the same throughput, and says nothing about a batch twice as large.
    """
    widest = usable[-1]
    half = max((width for width in usable if 2 * width <= widest), default=None)
    if half is None or half not in sure or widest not in sure:
        return True
    return widest / known[widest] >= GAIN * half / known[half]


def _seconds_for_all(known: Mapping[int, float], width: int, most: int) -> float:
    """Seconds to step `most` requests once, in batches of `width` and a smaller one of those left over."""
    batches, rest = divmod(most, width)
    if not rest or rest in known:
        return batches * known[width] + (known[rest] if rest else 0.0)
    low = max((each for each in known if each < rest), default=None)
    high = min(each for each in known if each > rest)
    return batches * known[width] + (known[high] if low is None else _between(known, low, high, rest))


def _between(known: Mapping[int, float], low: int, high: int, width: int) -> float:
    """Seconds per step at a batch size between two known ones, by linear interpolation."""
    return known[low] + (known[high] - known[low]) * (width - low) / (high - low)
