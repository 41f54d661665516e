"""Batching: which requests share a step or their finish, and how many. Pure; knows nothing of devices or files.

`Groups` files running entries under what they must have in common. `choose_width` decides from measured step times how
wide the next batch is: it widens by doubling, only while that raises the states stepped a second and while a step stays
within the latency goal (a request that comes in waits for the step in flight).

Try it: ``python -c "from studio.engine.batching import *; print(choose_width({1: .04, 2: .05}, {1, 2}, 2, 1.0, 9))"``
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable, Iterable, Mapping
from operator import attrgetter

from studio.engine.entry import Entry
from studio.generator import Generator

_number = attrgetter("number")
LATENCY_GOAL_S = 1.0  # a shared step that would take longer is made narrower
GAIN = 1.03  # a wider batch must bring this much more
LOOK_AGAIN = 256  # every so many steps the next wider and the next narrower are tried again: the load may have changed


class _Key:
    """A batch key whose hash is asked for once and whose comparison never raises: a plugin's object may do anything."""

    __slots__ = ("_hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value, self._hash = value, hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and same_key(self.value, other.value)


class Groups:
    """Running entries by what they must have in common to share a step, in the order they were accepted."""

    def __init__(self) -> None:
        self._filed: dict[Entry, OrderedDict[Entry, None]] = {}
        self._tables: dict[Hashable, OrderedDict[Entry, None]] = {}

    def file(self, entry: Entry) -> None:
        """File an entry, or file it anew, since what it has in common has changed."""
        self.remove(entry)
        own = (entry.background, entry.request.generator, entry.model, entry.threads)
        table = self._tables.setdefault((own, _Key(entry.key)), OrderedDict())
        last = next(reversed(table), entry)
        table[entry] = None
        if entry.number < last.number:
            for each in sorted(table, key=_number):
                table.move_to_end(each)
        self._filed[entry] = table

    def size(self, entry: Entry) -> int:
        """How many have in common what an entry has; at least 1."""
        return len(self._filed.get(entry, (entry,)))

    def remove(self, entry: Entry) -> None:
        """Forget an entry, if it is filed."""
        table = self._filed.pop(entry, None)
        if table is None:
            return
        del table[entry]
        if not table:
            for key in [key for key, each in self._tables.items() if each is table]:
                del self._tables[key]

    def most(self, lead: Entry) -> int:
        """How many may share a step that `lead` leads; it is filed if it was not."""
        if lead not in self._filed:
            self.file(lead)
        if _alone(lead):
            return 1
        return min(len(self._filed[lead]), lead.request.generator.max_batch)

    def batch(self, lead: Entry, width: int) -> list[Entry]:
        """`lead` and up to `width` - 1 others of its group."""
        batch = [lead]
        if width > 1:
            for other in self._filed[lead]:
                if len(batch) == width:
                    break
                if other is not lead and not _alone(other):
                    batch.append(other)
        return batch


def finish_together(lead: Entry, done: Iterable[Entry]) -> list[Entry]:
    """`lead` and those of the `done` that may be made into media in the same call with it."""
    generator = lead.request.generator
    if type(generator).finish_many is Generator.finish_many or _alone(lead):
        return [lead]
    others = [
        each
        for each in done
        if each is not lead
        and each.request.generator is generator
        and (each.group, each.model) == (lead.group, lead.model)
        and same_key(each.key, lead.key)
        and not _alone(each)
    ]
    return [lead, *others[: generator.max_batch - 1]]


def _alone(entry: Entry) -> bool:
    return entry.alone > 0 or entry.request.spec.invariant


def same_key(one: Hashable, other: Hashable) -> bool:
    """Whether two batch keys are equal; those that cannot be compared are not."""
    try:
        return bool(one == other)
    except BaseException:  # of a plugin's object
        return False


def choose_width(known: Mapping[int, float], sure: Container[int], most: int, goal_s: float, turn: int) -> int:
    """How many of `most` should share the next step.

    `known` maps widths to seconds a step, and `sure` has those of them that were measured well enough to judge by;
    `turn` counts the steps measured. Nothing known: 1, for its memory is not known either.
    """
    usable = sorted(width for width in known if width <= most)
    if not usable or most == 1:
        return 1
    widest = usable[-1]
    wider = min(most, 2 * widest)  # if sharing gained nothing it would take in proportion; most likely it takes less
    if wider not in known and _pays(known, sure, usable) and known[widest] * wider / widest <= 2 * goal_s:
        return wider
    if widest not in sure and (widest == 1 or known[widest] <= goal_s):
        return widest
    seconds = {width: known[width] for width in usable}
    if most not in seconds and (above := [width for width in known if width > most]):
        seconds[most] = _between(known, widest, min(above), most)
    fitting = [width for width in seconds if width == 1 or seconds[width] <= goal_s] or [min(seconds)]
    best = max(width / seconds[width] for width in fitting)
    chosen = min(width for width in fitting if width / seconds[width] * GAIN >= best)
    if turn % LOOK_AGAIN == LOOK_AGAIN - 1:
        return min((width for width in fitting if width > chosen), default=chosen)
    if turn % LOOK_AGAIN == LOOK_AGAIN // 2 - 1:
        return max((width for width in fitting if width < chosen), default=chosen)
    return chosen


def _pays(known: Mapping[int, float], sure: Container[int], usable: list[int]) -> bool:
    """Whether the widest known batch brought more than the one before it; yes, as long as that is not sure."""
    if len(usable) < 2 or not all(width in sure for width in usable[-2:]):
        return True
    before, widest = usable[-2:]
    return widest / known[widest] >= GAIN * before / known[before]


def _between(known: Mapping[int, float], low: int, high: int, width: int) -> float:
    """Seconds at a width between two known ones, on a straight line."""
    return known[low] + (known[high] - known[low]) * (width - low) / (high - low)
