"""Weight streaming: for a model larger than the memory budget, groups of layers are read from the file when they are
called, and stay on the device as far as memory allows.

Submodules up to a size limit are groups; larger ones are divided, except torch's own layers, which use the weights of
their children without calling them. Small and tied parameters, and those of divided modules, stay on the device. How
groups come is in `streamer`, and which stay in `residency`. Results equal those of the loaded model, byte for byte.

Try it: ``pytest tests/studio/weights/test_loading.py``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from studio import devices
from studio.devices import Copy
from studio.devices.staging import ALIGNMENT
from studio.weights.loading import SMALL

if TYPE_CHECKING:
    from studio.weights.loading import Streaming, Tensors
    from studio.weights.streamer import Streamer


def stream(made: torch.nn.Module, source: Tensors, names: Mapping[str, str], how: Streaming) -> set[int]:
    """Hook the groups of a module with parameters on the meta device; returns the ids of the streamed parameters.

    `names` maps a parameter's first name to its name in the source; other names are tied to one of these.
    """
    from studio.weights.streamer import Streamer

    if how.streamer is None:
        how.streamer = Streamer(devices.device(source.device))
    places = Counter(id(parameter) for _, parameter in made.named_parameters(remove_duplicate=False))
    prefixes = {id(each): prefix for prefix, each in made.named_modules()}
    streamed: set[int] = set()
    for module in _groups(made, how.limit, source.dtype):
        prefix = prefixes[id(module)]
        parameters = [
            (owner, leaf, names[".".join(filter(None, (prefix, inner, leaf)))])
            for inner, owner in module.named_modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None and places[id(parameter)] == 1
        ]
        if sum(_bytes(owner._parameters[leaf], source.dtype) for owner, leaf, _ in parameters) < SMALL:
            continue
        group = StreamedGroup(made, [_Place(owner, leaf, name, source) for owner, leaf, name in parameters], source)
        streamed |= {id(place.placeholder) for place in group.places}
        how.streamer.add(group)
        _hook(module, group, how.streamer)
    if streamed:
        _mark_device(made, source)
    return streamed


def _mark_device(made: torch.nn.Module, source: Tensors) -> None:
    """Register an empty first parameter on the device. Libraries take a module's device and dtype from its first one,
    which may be a placeholder.
    """
    own = list(made._parameters.items())
    made._parameters.clear()
    empty = torch.nn.Parameter(torch.empty(0, dtype=source.dtype, device=source.device), requires_grad=False)
    made.register_parameter("studio_device", empty)
    made._parameters.update(own)


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


def _bytes(parameter: torch.nn.Parameter | None, dtype: torch.dtype) -> int:
    assert parameter is not None
    return parameter.numel() * (dtype.itemsize if parameter.is_floating_point() else parameter.itemsize)


class _Place:
    """A parameter of a group: its module, its name there and in the source, and its placeholder on the meta device.

    The placeholder has the dtype that the weights will have: libraries ask for it between calls.
    """

    def __init__(self, owner: torch.nn.Module, leaf: str, name: str, source: Tensors) -> None:
        parameter = owner.get_parameter(leaf)
        dtype = source.dtype_of(name) if parameter.is_floating_point() else parameter.dtype
        self.owner, self.leaf, self.name = owner, leaf, name
        self.placeholder = torch.nn.Parameter(parameter.to(dtype), requires_grad=False)
        owner._parameters[leaf] = self.placeholder


class StreamedGroup:
    """Parameters that are streamed as a unit, of the module `component`.

    Attributes:
        size: bytes of all of them in one block, with alignment.
        busy: whether its layers compute now.
        weights: on the device, for `places`, or on their way there until `copy` is waited for; else None.
        pinned: a copy in pinned host memory, if the host has memory for it.
    """

    def __init__(self, component: Hashable, places: Sequence[_Place], source: Tensors) -> None:
        self.component, self.places, self._source = component, places, source
        self._starts, self.size = [], 0
        for place in places:
            self._starts.append(self.size)
            self.size += -(-place.placeholder.nbytes // ALIGNMENT) * ALIGNMENT
        self.busy = self._entered = False
        self.weights: list[torch.Tensor] | None = None
        self.copy: Copy | None = None
        self.pinned: torch.Tensor | None = None

    def fill(self, block: torch.Tensor) -> None:
        """Read the weights from the files into host memory. Raises WeightsError."""
        for place, into in zip(self.places, self.views(block), strict=True):
            self._source.copy_into(place.name, into)

    def read(self) -> list[torch.Tensor]:
        """The weights on the device, in memory of their own."""
        return [self._source.read(place.name) for place in self.places]

    def views(self, block: torch.Tensor) -> list[torch.Tensor]:
        """The weights in a block of at least `size` bytes, in the memory formats that the placeholders were given."""
        likes = [place.placeholder for place in self.places]
        return [
            torch.as_strided(block[start : start + each.nbytes].view(each.dtype), each.shape, each.stride())
            for start, each in zip(self._starts, likes, strict=True)
        ]

    def enter(self) -> None:
        """Set the weights as the parameters, unless they are."""
        if self._entered or self.weights is None:
            return
        self._entered = True
        for place, weight in zip(self.places, self.weights, strict=True):
            place.owner._parameters[place.leaf] = torch.nn.Parameter(weight, requires_grad=False)

    def leave(self) -> None:
        """Let the weights go, and restore the placeholders."""
        self.weights = self.copy = None
        if not self._entered:
            return
        self._entered = False
        for place in self.places:
            place.owner._parameters[place.leaf] = place.placeholder


def _hook(module: torch.nn.Module, group: StreamedGroup, streamer: Streamer) -> None:
    module.register_forward_pre_hook(lambda _, given: streamer.load(group))
    module.register_forward_hook(lambda _, given, made: streamer.unload(group), always_call=True)
