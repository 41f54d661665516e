"""A module larger than the memory for it: its layers come from the file when they are called, and go again after.

Submodules up to a limit are groups; larger ones are looked into, except torch's own layers, which use their parts'
weights without calling them. What is directly in a module that was looked into, what is tied, and what is small stays.
On a device that pins host memory the next group is on its way while one computes. Results are those of the loaded
module, byte for byte. This module knows nothing of ledgers or engines.

Try it: ``pytest tests/studio/test_weights.py``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from studio import devices
from studio.devices import Copy, Device
from studio.devices.staging import ALIGNMENT
from studio.weights.loading import SMALL

if TYPE_CHECKING:
    from studio.weights.loading import Streaming, Tensors


def stream(made: torch.nn.Module, source: Tensors, names: Mapping[str, str], how: Streaming) -> set[int]:
    """Hook the groups of a module whose parameters are on meta; returns the ids of the parameters that are streamed.

    `names` maps a parameter's first name to its name in the source; one that is not a key has been tied to another.
    """
    device = devices.device(source.device)
    if device.pins and how.ahead is None:
        how.ahead, how.at_once = Ahead(device, how), 2
    places = Counter(id(parameter) for _, parameter in made.named_parameters(remove_duplicate=False))
    prefixes = {id(each): prefix for prefix, each in made.named_modules()}
    streamed: set[int] = set()
    for module in _groups(made, how.limit, source.dtype):
        prefix = prefixes[id(module)]
        own = [
            (owner, leaf, parameter, names[".".join(filter(None, (prefix, inner, leaf)))])
            for inner, owner in module.named_modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None and places[id(parameter)] == 1
        ]
        sizes = [_bytes(parameter, source.dtype) for _, _, parameter, _ in own]
        if sum(sizes) < SMALL:
            continue
        streamed |= {id(parameter) for _, _, parameter, _ in own}
        how.largest = max(how.largest, sum(sizes) if how.ahead is None else _ends(sizes)[-1])
        _hook(module, _Group(own, source), how.ahead)
    return streamed


def _groups(whole: torch.nn.Module, limit: int, dtype: torch.dtype) -> Iterator[torch.nn.Module]:
    """The submodules that come and go as one. The whole is none: its methods may be called past its hooks."""
    for child in whole.children():
        size = sum(_bytes(parameter, dtype) for parameter in child.parameters())
        container = isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict)  # never called itself
        sealed = type(child).__module__.startswith("torch.nn.modules") and not isinstance(child, torch.nn.Sequential)
        if not container and (size <= limit or sealed or not any(True for _ in child.children())):
            yield child
        else:
            yield from _groups(child, limit, dtype)


def _bytes(parameter: torch.nn.Parameter, dtype: torch.dtype) -> int:
    return parameter.numel() * (dtype.itemsize if parameter.is_floating_point() else parameter.itemsize)


def _ends(sizes: Sequence[int]) -> list[int]:
    """Where each of several tensors ends in one buffer, filled up to where the next may begin."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return ends[1:]


@dataclass(eq=False)
class _Group:
    """Parameters that come and go as one: for each its owner, its name there, what stands for it while it is away, and
    its name in the source.
    """

    own: Sequence[tuple[torch.nn.Module, str, torch.nn.Parameter, str]]
    source: Tensors

    def read(self) -> list[torch.Tensor]:
        """Copies on the device."""
        return [self.source.read(name) for *_, name in self.own]

    def come(self, weights: Sequence[torch.Tensor]) -> None:
        """Put these into their places."""
        for (owner, leaf, *_), weight in zip(self.own, weights, strict=True):
            owner._parameters[leaf] = torch.nn.Parameter(weight, requires_grad=False)

    def go(self) -> None:
        """Take them away."""
        for owner, leaf, parameter, _ in self.own:
            owner._parameters[leaf] = parameter


def _hook(module: torch.nn.Module, group: _Group, ahead: Ahead | None) -> None:
    def come(_: torch.nn.Module, given: Any) -> None:
        group.come(group.read() if ahead is None else ahead.come(group))

    def go(_: torch.nn.Module, given: Any, made: Any) -> None:
        group.go()
        if ahead is not None:
            ahead.go(group)

    module.register_forward_pre_hook(come)
    module.register_forward_hook(go, always_call=True)


@dataclass
class _Slot:
    """Memory for one group: pinned on the host, and as much on the device. `copy` is the last from one to the other."""

    host: torch.Tensor
    there: torch.Tensor | None = None
    group: _Group | None = None
    weights: list[torch.Tensor] = field(default_factory=list)
    copy: Copy | None = None
    computes: bool = False


class Ahead:
    """Groups on a device that pins: the next is on its way while one computes, in two slots by turns.

    Which is next is learned from the last time. The stream of copies waits for what was queued when a copy is asked
    for, and that is before the group that computes now is: so it waits only for the one before, whose slot it takes.
    Not for several threads at once.
    """

    def __init__(self, device: Device, how: Streaming) -> None:
        self._device, self._how = device, how
        self._slots: list[_Slot] = []
        self._after: dict[_Group, _Group] = {}
        self._last: _Group | None = None

    def come(self, group: _Group) -> list[torch.Tensor]:
        """The group's weights, for all that this thread queues from now on; the next group begins to come."""
        slot = self._find(group) or self._begin(group)
        if slot is None:
            return group.read()
        slot.computes = True
        if slot.copy is not None:
            slot.copy.wait()
        if self._last is not None:
            self._after[self._last] = group
        self._last = group
        following = self._after.get(group)
        if following is not None and self._find(following) is None:
            self._begin(following)
        return slot.weights

    def go(self, group: _Group) -> None:
        """The group has computed, or failed to."""
        for slot in self._slots:
            slot.computes = slot.computes and slot.group is not group

    def _find(self, group: _Group) -> _Slot | None:
        return next((slot for slot in self._slots if slot.group is group and not slot.computes), None)

    def _begin(self, group: _Group) -> _Slot | None:
        """Begin to copy a group to the device; None where both slots compute, or it does not fit."""
        if not self._slots or len(self._slots[0].host) < self._how.largest:
            with torch.inference_mode(False):  # else they could not be written outside of it
                self._slots = [_Slot(self._device.pinned(self._how.largest)) for _ in range(2)]
        slot = next((each for each in self._slots if not each.computes), None)
        if slot is None:
            return None
        slot.group, slot.weights = None, []
        if slot.copy is not None:
            slot.copy.join()  # long over, unless the host is far ahead
        places = _fill(slot.host, group)
        if places is None:
            return None
        slot.copy = self._device.copy_beside(lambda: [_copy(slot, places, self._device)])
        slot.group = group
        return slot


def _fill(host: torch.Tensor, group: _Group) -> list[tuple[int, torch.Size, torch.dtype]] | None:
    """Read a group into pinned memory: where each tensor begins, its shape and its dtype; None if it does not fit."""
    stored = [group.source.stored(name) for *_, name in group.own]
    dtypes = [group.source.dtype if each.is_floating_point() else each.dtype for each in stored]
    sizes = [each.numel() * dtype.itemsize for each, dtype in zip(stored, dtypes, strict=True)]
    ends = _ends(sizes)
    if ends[-1] > len(host):
        return None
    places = []
    for tensor, dtype, begin, size in zip(stored, dtypes, [0, *ends], sizes, strict=False):
        host[begin : begin + size].view(dtype).view(tensor.shape).copy_(tensor)
        places.append((begin, tensor.shape, dtype))
    return places


def _copy(slot: _Slot, places: Sequence[tuple[int, torch.Size, torch.dtype]], device: Device) -> torch.Tensor:
    """Copy a slot to the device, whose memory is made here: on the stream of copies, which alone writes there."""
    if slot.there is None:
        with torch.inference_mode(False):
            slot.there = torch.empty(len(slot.host), dtype=torch.uint8, device=device.name)
    ends = [begin + shape.numel() * dtype.itemsize for begin, shape, dtype in places]
    slot.there[: ends[-1]].copy_(slot.host[: ends[-1]], non_blocking=True)
    slot.weights = [
        slot.there[begin:end].view(dtype).view(shape)
        for (begin, shape, dtype), end in zip(places, ends, strict=True)
    ]  # fmt: skip
    return slot.there
