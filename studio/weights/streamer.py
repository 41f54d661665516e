"""The streamer of a device: brings groups of streamed layers to it for their calls, and keeps those that may stay.

On a device that pins host memory the next group is prefetched while one computes.

Try it: ``pytest tests/studio/weights/test_streamer.py``
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakSet

import torch

from studio.devices import Copy, Device
from studio.weights.residency import Residency
from studio.weights.streaming import StreamedGroup


class Account(Protocol):
    """Counts the bytes of holders: a ledger of the engine."""

    budget: int | None

    @property
    def free(self) -> float:
        """Bytes that are free."""

    def hold(self, holder: Hashable, size: int) -> None:
        """Set the bytes of a holder."""

    def release(self, holder: Hashable) -> None:
        """The holder has none."""


@dataclass(eq=False)
class _Slot:
    """Memory through which groups pass: on the host (pinned), and on a device that pins as much there.

    `copy` is the last copy from `host`; `group` is what is in it or on its way.
    """

    host: torch.Tensor
    there: torch.Tensor | None = None
    group: StreamedGroup | None = None
    copy: Copy | None = None


@dataclass
class _Passage:
    """The slots, and the order in which groups pass. `thread` is the identifier of the thread that uses them."""

    thread: int | None = None
    slots: list[_Slot] = field(default_factory=list)
    following: dict[StreamedGroup, StreamedGroup] = field(default_factory=dict)
    last: StreamedGroup | None = None


class Streamer:
    """The streamed groups of one device: each comes for its call, and stays if it may.

    On a device that pins, groups come through two slots by turns: the next is on its way while one computes. Which is
    next is learned from the last time. The stream of copies waits for what was queued when a copy is asked for, and
    that is before the group that computes now is: so it waits only for the one before, whose slot it takes. Elsewhere
    there is one slot, and a group is read when it is called. Slots belong to the thread that calls `begin`. Groups that
    are called in another (an abandoned call) have memory of their own, so that neither disturbs the other.

    `account` counts what groups and slots hold on the device. `host` counts copies in pinned memory, which take at most
    half of its budget; None: there are none.
    """

    def __init__(self, device: Device, account: Account | None = None, host: Account | None = None) -> None:
        self._device, self._account, self._host = device, account, host
        self.residency: Residency[StreamedGroup] = Residency(StreamedGroup.leave)
        self._groups: WeakSet[StreamedGroup] = WeakSet()
        self._passage = _Passage()
        self._most = float("inf")  # what may stay at all, since memory ran out
        self._held_before = 0
        self.largest = 0

    @property
    def at_once(self) -> int:
        """The number of slots."""
        return 2 if self._device.pins_memory else 1

    @property
    def passing(self) -> int:
        """Bytes of the slots."""
        return self.largest * self.at_once

    @property
    def grown(self) -> int:
        """Bytes that have come to stay during the current call."""
        return max(0, self.residency.held - self._held_before)

    def add(self, group: StreamedGroup) -> None:
        """Take a group into account."""
        self._groups.add(group)
        self.largest = max(self.largest, group.size)
        self._count()

    def begin(self, limit: float) -> None:
        """A call begins, which leaves `limit` bytes for groups that stay: drop what is more, and make the slots."""
        if self._passage.thread != threading.get_ident():
            self._passage = _Passage(threading.get_ident())
        self.residency.fit(min(limit, self._most))
        self._held_before = self.residency.held
        self._slots()
        self._count()

    def free(self, size: float) -> None:
        """Drop groups until `size` bytes are free, as far as there are any."""
        self.residency.free(size)
        self._count()

    def out_of_memory(self) -> bool:
        """Drop all groups that stay, and let less stay from now on. Returns False if there were none."""
        held = self.residency.held
        if not held:
            return False
        self._most = min(self._most, held // 2)
        self.residency.limit = min(self.residency.limit, self._most)
        self.free(held)
        return True

    def offload(self, component: Hashable) -> None:
        """Drop the groups of a component; copies in pinned memory remain."""
        for group in [each for each in self._groups if each.component is component and each in self.residency]:
            self.residency.remove(group)
        self._count()

    def forget(self, component: Hashable) -> None:
        """The component is deleted."""
        self.residency.forget(component)
        for group in [each for each in self._groups if each.component is component]:
            self._groups.discard(group)
            if group.pinned is not None and self._host is not None:
                self._host.release(group)
            group.pinned = None
        self.largest = max((group.size for group in self._groups), default=0)
        self._passage = _Passage(self._passage.thread)
        self._count()

    def load(self, group: StreamedGroup) -> None:
        """Set the group's weights, for all that this thread queues from now on; the next group begins to come."""
        here = self._passage.thread in (None, threading.get_ident())
        if here:
            self.residency.call(group)
            if group.weights is None:
                self._bring(group)
        if group.weights is None:  # all slots compute, or belong to another thread
            group.weights = group.read()
        if group.copy is not None:
            group.copy.wait()
            group.copy = None
        group.busy = True
        group.enter()
        if here and self._device.pins_memory:
            self._prefetch(group)

    def unload(self, group: StreamedGroup) -> None:
        """The group has computed, or failed."""
        group.busy = False
        if group in self.residency:
            return
        group.leave()
        for slot in self._passage.slots:
            if slot.group is group:
                slot.group = None

    def _slots(self) -> list[_Slot]:
        """The slots, large enough for all groups."""
        passage = self._passage
        if self.largest and (not passage.slots or len(passage.slots[0].host) < self.largest):
            with torch.inference_mode(False):  # inference tensors could not be written outside inference mode
                passage.slots = [_Slot(self._device.pinned(self.largest)) for _ in range(self.at_once)]
            if not self._device.pins_memory:
                passage.slots[0].host.fill_(0)  # so that it is there before the peak of a call is measured
        return passage.slots

    def _bring(self, group: StreamedGroup) -> None:
        """Read a group, or start to copy it to the device. Its `weights` stay None if it needs a slot and all compute.

        Raises WeightsError.
        """
        slot = self._free_slot()
        stays = self.residency.admit(group)
        try:
            with torch.inference_mode(False):
                if self._device.pins_memory:
                    self._copy(group, slot, stays)
                elif stays or slot is not None:
                    block = self._device.block(group.size) if stays or slot is None else slot.host
                    group.fill(block)
                    group.weights = group.views(block)
        except torch.OutOfMemoryError:
            if not stays:
                raise
            self.out_of_memory()
            return self._bring(group)
        finally:
            if group.weights is None and group in self.residency:
                self.residency.remove(group)
        if slot is not None and not stays:
            slot.group = group
        self._count()
        return None

    def _free_slot(self) -> _Slot | None:
        """A slot that does not compute; what was on its way there is forgotten."""
        slots = sorted(self._slots(), key=lambda each: each.group is not None)
        slot = next((each for each in slots if each.group is None or not each.group.busy), None)
        if slot is not None and slot.group is not None:
            slot.group.leave()
            slot.group = None
        return slot

    def _copy(self, group: StreamedGroup, slot: _Slot | None, stays: bool) -> None:
        """Start to copy a group to the device: from pinned memory of its own, or through the slot."""
        host = self._pinned(group)
        if slot is None and not (stays and host is not None):
            return
        if host is None:
            assert slot is not None
            if slot.copy is not None:
                slot.copy.join()  # complete, unless the host is far ahead
            host = slot.host
            group.fill(host)
        source = host[: group.size]

        def copy() -> list[torch.Tensor]:
            block = self._block(group, slot, stays)
            block[: group.size].copy_(source, non_blocking=True)
            group.weights = group.views(block)
            return [block]

        group.copy = self._device.copy_async(copy)
        if slot is not None and host is slot.host:
            slot.copy = group.copy

    def _block(self, group: StreamedGroup, slot: _Slot | None, stays: bool) -> torch.Tensor:
        """Memory on the device, allocated on the copy stream, the only one to write it."""
        if stays or slot is None:
            return self._device.block(group.size)
        if slot.there is None:
            slot.there = self._device.block(len(slot.host))
        return slot.there

    def _pinned(self, group: StreamedGroup) -> torch.Tensor | None:
        """A copy of the group in pinned memory, if the host has memory for it; the files are read only once then."""
        if group.pinned is not None or self._host is None:
            return group.pinned
        size = self._device.host_bytes(group.size)
        if self._host.free - size < (self._host.budget or 0) // 2:
            return None
        block = self._device.pinned(group.size)
        group.fill(block)
        group.pinned = block
        self._host.hold(group, size)
        return block

    def _prefetch(self, group: StreamedGroup) -> None:
        """Start to copy the next group that is not on the device."""
        passage = self._passage
        following, last = passage.following, passage.last
        if last is not None:
            following[last] = group
        passage.last = group
        coming = following.get(group)
        for _ in range(len(following)):
            if coming is None or coming not in self.residency:
                break
            coming = following.get(coming)
        if coming is not None and coming.weights is None:
            self._bring(coming)

    def _count(self) -> None:
        if self._account is not None:
            self._account.hold(self, self.residency.held + self.passing)
