"""Residency: which groups of streamed layers stay on a device between their calls, within a limit. Pure.

A group that is called stays if there is room. Else groups of components that are needed later are dropped for it: those
last called so long ago, or so rarely, that the group that is called now will be needed at least twice before. So the
text encoders leave when the denoiser runs, and a VAE that runs once does not drive out the denoiser of other requests.
Groups of its own component are never dropped for a group: layers are called in a cycle, where the least recently used
one is the next (LRU would keep none of them). The rule is that of LIRS (Jiang and Zhang, SIGMETRICS 2002): reuse
distances are compared, not recency.

Try it: ``pytest tests/studio/weights/test_residency.py``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

_MUCH_LATER = 2  # times the reuse distance of the group that is called


class LayerGroup(Protocol):
    """What may stay: `size` in bytes, the `component` it belongs to, and whether its layers compute now (`busy`)."""

    size: int
    busy: bool

    @property
    def component(self) -> Hashable:
        """Groups of one component are called in a cycle."""


GroupT = TypeVar("GroupT", bound=LayerGroup)


@dataclass
class _Component(Generic[GroupT]):
    """When its groups were last called; the calls of groups between the last two calls of one; and those that stay."""

    called: int = 0
    distance: float = math.inf
    staying: dict[GroupT, None] = field(default_factory=dict)


class Residency(Generic[GroupT]):
    """The groups that stay on one device. `drop` is called for each that has to go.

    Attributes:
        limit: bytes that they may hold during the current call.
        held: bytes that they hold.
    """

    def __init__(self, drop: Callable[[GroupT], None]) -> None:
        self.limit: float = 0
        self.held = 0
        self._drop = drop
        self._now = 0
        self._called: dict[GroupT, tuple[int, float]] = {}  # when, and the distance then
        self._components: dict[Hashable, _Component[GroupT]] = {}

    def __contains__(self, group: GroupT) -> bool:
        found = self._components.get(group.component)
        return found is not None and group in found.staying

    def held_by(self, component: Hashable) -> int:
        """Bytes that groups of a component hold."""
        found = self._components.get(component)
        return sum(group.size for group in found.staying) if found else 0

    def call(self, group: GroupT) -> None:
        """Note that a group is called."""
        self._now += 1
        before = self._called.get(group)
        distance = math.inf if before is None else self._now - before[0]
        self._called[group] = self._now, distance
        component = self._components.setdefault(group.component, _Component())
        component.called, component.distance = self._now, distance

    def admit(self, group: GroupT) -> bool:
        """Whether a group stays that is called now, or next; others are dropped for it."""
        if group in self:
            return True
        need = group.size - (self.limit - self.held)
        leaving: list[GroupT] = []
        for other in self._needed_later(group) if need > 0 else ():
            leaving.append(other)
            need -= other.size
            if need <= 0:
                break
        if need > 0:
            return False
        for other in leaving:
            self.remove(other)
        self._components.setdefault(group.component, _Component()).staying[group] = None
        self.held += group.size
        return True

    def fit(self, limit: float) -> None:
        """Set the limit for the next call, and drop what is more."""
        self.limit = max(0, limit)
        self.free(self.held - self.limit)

    def free(self, size: float) -> None:
        """Drop groups until `size` bytes are free, as far as there are any; those needed last go first."""
        for group in list(self._droppable()) if size > 0 else ():
            if size <= 0:
                break
            self.remove(group)
            size -= group.size

    def remove(self, group: GroupT) -> None:
        """Drop a group."""
        del self._components[group.component].staying[group]
        self.held -= group.size
        self._drop(group)

    def forget(self, component: Hashable) -> None:
        """Drop all groups of a component, and what is known of them."""
        found = self._components.get(component)
        for group in list(found.staying) if found else ():
            self.remove(group)
        self._components.pop(component, None)
        self._called = {group: known for group, known in self._called.items() if group.component != component}

    def _distance(self, called: int, distance: float) -> float:
        """The estimated calls between two uses: at least those since the last."""
        return max(distance, self._now - called)

    def _droppable(self) -> Iterator[GroupT]:
        """Groups that do not compute: those of the component that is needed last first, and of it the newest."""
        for component in sorted(
            self._components.values(), key=lambda each: (-self._distance(each.called, each.distance), each.called)
        ):
            for group in reversed(component.staying):
                if not group.busy:
                    yield group

    def _needed_later(self, group: GroupT) -> Iterator[GroupT]:
        """Groups of other components that will be needed much later than `group` again."""
        called, distance = self._called.get(group, (self._now, math.inf))
        own = self._distance(called, distance)
        for other in self._droppable():
            found = self._components[other.component]
            theirs = self._distance(found.called, found.distance)
            if theirs < _MUCH_LATER * own:  # two infinities are equal: what came first leaves
                return
            if other.component != group.component:
                yield other
