"""Weight streaming: for a model larger than the memory budget, layers are read from the file when they are called.

Submodules up to a size limit are groups; larger ones are divided, except torch's own layers, which use the weights of
their children without calling them. Small and tied parameters, and those of divided modules, stay on the device. On a
device that pins host memory the next group is prefetched while one computes. Results equal those of the loaded model,
byte for byte.

Try it: ``pytest tests/studio/weights/test_loading.py``
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
    """Hook the groups of a module with parameters on the meta device; returns the ids of the streamed parameters.

    `names` maps a parameter's first name to its name in the source; other names are tied to one of these.
    """
    device = devices.device(source.device)
    if device.pins_memory and how.prefetcher is None:
        how.prefetcher, how.at_once = Prefetcher(device, how), 2
    places = Counter(id(parameter) for _, parameter in made.named_parameters(remove_duplicate=False))
    prefixes = {id(each): prefix for prefix, each in made.named_modules()}
    streamed: set[int] = set()
    for module in _groups(made, how.limit, source.dtype):
        prefix = prefixes[id(module)]
        parameters = [
            (owner, leaf, parameter, names[".".join(filter(None, (prefix, inner, leaf)))])
            for inner, owner in module.named_modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None and places[id(parameter)] == 1
        ]
        sizes = [_bytes(parameter, source.dtype) for _, _, parameter, _ in parameters]
        if sum(sizes) < SMALL:
            continue
        streamed |= {id(parameter) for _, _, parameter, _ in parameters}
        how.largest = max(how.largest, sum(sizes) if how.prefetcher is None else _ends(sizes)[-1])
        _hook(module, _Group(parameters, source), how.prefetcher)
    return streamed


def _groups(whole: torch.nn.Module, limit: int, dtype: torch.dtype) -> Iterator[torch.nn.Module]:
    """The submodules that are streamed as a unit; never the whole model, whose methods may bypass its hooks."""
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
    """Where each of several tensors ends in one buffer, with alignment padding."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return ends[1:]


@dataclass(eq=False)
class _Group:
    """Parameters that are streamed as a unit: for each its module, its name there, its meta placeholder, and its name
    in the source.
    """

    parameters: Sequence[tuple[torch.nn.Module, str, torch.nn.Parameter, str]]
    source: Tensors

    def read(self) -> list[torch.Tensor]:
        """Copies on the device."""
        return [self.source.read(name) for *_, name in self.parameters]

    def load(self, weights: Sequence[torch.Tensor]) -> None:
        """Set these as the parameters."""
        for (owner, leaf, *_), weight in zip(self.parameters, weights, strict=True):
            owner._parameters[leaf] = torch.nn.Parameter(weight, requires_grad=False)

    def unload(self) -> None:
        """Restore the meta placeholders."""
        for owner, leaf, parameter, _ in self.parameters:
            owner._parameters[leaf] = parameter


def _hook(module: torch.nn.Module, group: _Group, prefetcher: Prefetcher | None) -> None:
    def load(_: torch.nn.Module, given: Any) -> None:
        group.load(group.read() if prefetcher is None else prefetcher.load(group))

    def unload(_: torch.nn.Module, given: Any, made: Any) -> None:
        group.unload()
        if prefetcher is not None:
            prefetcher.unload(group)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(unload, always_call=True)


@dataclass
class _Slot:
    """Memory for one group: pinned on the host, and as much on the device. `copy` is the last copy to the device."""

    host: torch.Tensor
    there: torch.Tensor | None = None
    group: _Group | None = None
    weights: list[torch.Tensor] = field(default_factory=list)
    copy: Copy | None = None
    computes: bool = False


class Prefetcher:
    """Groups on a device that pins: the next is on its way while one computes, in two slots by turns.

    Which is next is learned from the last time. The stream of copies waits for what was queued when a copy is asked
    for, and that is before the group that computes now is: so it waits only for the one before, whose slot it takes.
    Not for several threads at once.
    """

    def __init__(self, device: Device, how: Streaming) -> None:
        self._device, self._how = device, how
        self._slots: list[_Slot] = []
        self._following: dict[_Group, _Group] = {}
        self._last: _Group | None = None

    def load(self, group: _Group) -> list[torch.Tensor]:
        """The group's weights, for all that this thread queues from now on; the next group begins to come."""
        slot = self._find(group) or self._begin(group)
        if slot is None:
            return group.read()
        slot.computes = True
        if slot.copy is not None:
            slot.copy.wait()
        if self._last is not None:
            self._following[self._last] = group
        self._last = group
        following = self._following.get(group)
        if following is not None and self._find(following) is None:
            self._begin(following)
        return slot.weights

    def unload(self, group: _Group) -> None:
        """The group has computed, or failed."""
        for slot in self._slots:
            slot.computes = slot.computes and slot.group is not group

    def _find(self, group: _Group) -> _Slot | None:
        return next((slot for slot in self._slots if slot.group is group and not slot.computes), None)

    def _begin(self, group: _Group) -> _Slot | None:
        """Start to copy a group to the device; None if both slots compute, or it does not fit."""
        if not self._slots or len(self._slots[0].host) < self._how.largest:
            with torch.inference_mode(False):  # inference tensors could not be written outside inference mode
                self._slots = [_Slot(self._device.pinned(self._how.largest)) for _ in range(2)]
        slot = next((each for each in self._slots if not each.computes), None)
        if slot is None:
            return None
        slot.group, slot.weights = None, []
        if slot.copy is not None:
            slot.copy.join()  # complete, unless the host is far ahead
        places = _fill(slot.host, group)
        if places is None:
            return None
        slot.copy = self._device.copy_async(lambda: [_copy(slot, places, self._device)])
        slot.group = group
        return slot


def _fill(host: torch.Tensor, group: _Group) -> list[tuple[int, torch.Size, torch.dtype]] | None:
    """Read a group into pinned memory. Returns start, shape and dtype of each tensor, or None if it does not fit."""
    names = [name for *_, name in group.parameters]
    stored = [group.source.stored(name) for name in names]
    dtypes = [group.source.dtype_of(name) if each.is_floating_point() else each.dtype
              for name, each in zip(names, stored, strict=True)]  # fmt: skip
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
    """Copy a slot to the device; its device memory is allocated here, on the copy stream, the only one to write it."""
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
