"""Components: the modules of models, each stored once however many models use it, on the device or offloaded.

Two components are the same if their weight files have equal content and their modules, configurations and packing are
equal. Offload: a model that is evicted from a CUDA device leaves its components in pinned host memory, if they fit;
they are restored by an async copy on a stream of its own, concurrently with computation. The ledger of the device
counts each component on it once; the ledger of the host counts offloaded components.

A component may be streamed (see `studio.weights.streaming`): then its `size` is what always stays, and groups of its
layers stay as far as the budget allows. The ledger counts them as one holder, the device's streamer.

Try it: ``pytest tests/studio/engine/memory/test_components.py``
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import devices
from studio.devices import Copy
from studio.devices.memory import map_large_blocks
from studio.engine.memory.ledger import Ledger, tensor_bytes

if TYPE_CHECKING:
    import torch

    from studio.weights.loading import Pack
    from studio.weights.streamer import Streamer


@dataclass(eq=False)
class Component:
    """A module and where it is; `size` in bytes, `hashes` of its files. `pending` is the copy that restores it, until
    `Components.wait`, and `return_s` is how long the last one took. `saved` is how many bytes packing saved.
    """

    module: Any
    size: int
    hashes: frozenset[str]
    saved: int = 0
    users: set[Any] = field(default_factory=set)
    on_device: bool = True
    pending: Copy | None = None
    return_s: float | None = None


class Components:
    """The components of one device. `host` is the ledger of host memory for offload; None disables offload."""

    def __init__(self, device: str, ledger: Ledger, hash_file: Callable[[Path], str], host: Ledger | None) -> None:
        self.device, self.ledger, self.host, self._hash = devices.device(device), ledger, host, hash_file
        self._components: dict[Hashable, Component] = {}
        self._made = threading.local()
        self._landed: list[tuple[Component, Copy]] = []  # whose duration is not read yet
        self._streamer: Streamer | None = None

    @property
    def streamer(self) -> Streamer:
        """Brings the layers of streamed components to the device."""
        if self._streamer is None:
            from studio.weights.streamer import Streamer

            if not self.device.pins_memory:
                map_large_blocks()
            self._streamer = Streamer(self.device, self.ledger, self.host)
        return self._streamer

    @property
    def any_streamed(self) -> bool:
        """Whether layers of a component are, or have been, streamed."""
        return self._streamer is not None

    @property
    def droppable(self) -> int:
        """Bytes of streamed layers that stay on the device only for speed."""
        return self._streamer.residency.held if self._streamer else 0

    @property
    def passing(self) -> int:
        """Bytes of memory for streamed layers that come and go."""
        return self._streamer.passing if self._streamer else 0

    @property
    def room(self) -> int:
        """Bytes that streamed layers may hold at most: all that nothing else holds."""
        return 0 if math.isinf(self.ledger.free) else max(0, int(self.ledger.free) + self.droppable)

    @property
    def grown(self) -> int:
        """Bytes of streamed layers that have come to stay during the current call."""
        return self._streamer.grown if self._streamer else 0

    def drop(self, size: float) -> None:
        """Drop streamed layers until `size` bytes are free, as far as there are any."""
        if self._streamer is not None:
            self._streamer.free(size)

    def drop_for_good(self) -> bool:
        """Memory has run out: drop all streamed layers, and let fewer stay from now on. False if there were none."""
        return self._streamer is not None and self._streamer.out_of_memory()

    def begin_call(self, peak: int | None, untracked: int) -> None:
        """A call begins whose peak is `peak` bytes: streamed layers may stay in what that and all else leave free;
        `untracked` is in bytes and in use, although the ledger does not hold it.

        None is a peak that was never measured: then no layers stay, so that it is measured within the budget.
        """
        if self._streamer is None:
            return
        free = self.ledger.free + self.droppable - untracked
        self._streamer.begin(0 if peak is None else free - peak)

    def streamed_bytes(self, components: Collection[Component]) -> int:
        """Bytes of layers of these components that stay on the device at the moment."""
        if self._streamer is None:
            return 0
        return sum(self._streamer.residency.held_by(component.module) for component in components)

    @contextmanager
    def collecting(self) -> Iterator[list[Component]]:
        """Collect the components that this thread requests within the block."""
        self._made.components = []
        try:
            yield self._made.components
        finally:
            self._made.components = []

    def component(
        self, built: torch.nn.Module, files: Sequence[Path], dtype: object, fill: Callable[[], Any], pack: Pack | None
    ) -> Any:
        """Return the module that is stored for what `built` is, or `built` after filling and packing it."""
        hashes = frozenset(self._hash(file) for file in files)
        key = (repr(built), str(getattr(built, "config", "")), hashes, str(dtype), pack)
        found = self._components.get(key)
        if found is None:
            fill()
            filled = size = tensor_bytes(built, self.device.name)
            if pack is not None:
                pack(built)
                size = tensor_bytes(built, self.device.name)
            found = self._components[key] = Component(built, size, hashes, saved=max(0, filled - size))
        self._made.components.append(found)
        return found.module

    def shared_bytes(self, hashes: Collection[str]) -> int:
        """Bytes of components on the device that a model with these weight files will share."""
        return sum(
            component.size
            for component in self._components.values()
            if component.on_device and component.users and component.hashes <= {*hashes}
        )

    def use(self, components: Collection[Component], user: Hashable) -> None:
        """Add a model to the users of these components."""
        for component in components:
            if not component.users:  # the generator's `load` may have added to the module, such as a LoRA
                component.size = max(component.size, tensor_bytes(component.module, self.device.name))
            component.users.add(user)
            self.ledger.hold(component, component.size)

    def release(self, components: Collection[Component], user: Hashable) -> None:
        """Remove an evicted model from the users; components without users are deleted."""
        for component in components:
            component.users.discard(user)
            if not component.users:
                self.ledger.release(component)
                if self.host is not None:
                    self.host.release(component)
        self.forget_unused()

    def forget_unused(self) -> None:
        """Delete components without users, as after a failed load."""
        for key, component in list(self._components.items()):
            if component.users:
                continue
            del self._components[key]
            if self._streamer is not None:
                self._streamer.forget(component.module)

    def offload(self, components: Collection[Component]) -> None:
        """Copy components to host memory, and free their device memory."""
        assert self.host is not None
        self.wait(components)  # a component whose restore is not complete must not be copied
        self.device.drop_recordings()
        for component in components:
            if self._streamer is not None:
                self._streamer.offload(component.module)
            _replace(component.module, self.device.to_host)
            component.on_device = False
            self.ledger.release(component)
            self.host.hold(component, self.device.host_bytes(component.size))

    def restore(self, components: Collection[Component]) -> None:
        """Start to copy offloaded components to the device; call `wait` before they are used."""
        for component in components:
            if component.on_device:
                continue
            component.pending = self._copy_to_device(component.module)
            component.on_device = True
            self.ledger.hold(component, component.size)
            if self.host is not None:
                self.host.release(component)

    def wait(self, components: Collection[Component]) -> None:
        """Make computation that is queued from now on wait for the copies of these components."""
        for component in components:
            if component.pending is not None:
                component.pending.wait()
                self._landed.append((component, component.pending))
                component.pending = None

    def return_s(self, components: Collection[Component]) -> float | None:
        """Seconds that the last restore of these components took, or None if that is not known."""
        known = [(component, seconds) for component, copy in self._landed if (seconds := copy.seconds()) is not None]
        for component, seconds in known:
            component.return_s = seconds
        done = {component for component, _ in known}
        self._landed = [each for each in self._landed if each[0] not in done]
        seconds_of = [component.return_s for component in components if component.return_s is not None]
        return sum(seconds_of) if seconds_of else None

    def _copy_to_device(self, module: torch.nn.Module) -> Copy | None:
        """Start to copy a module to the device."""

        def come(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [tensor.to(self.device.name, non_blocking=True, copy=True) for tensor in tensors]

        def copy() -> Sequence[torch.Tensor]:
            return _replace(module, come)

        return self.device.copy_async(copy)


def _replace(
    module: torch.nn.Module, move: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
) -> Sequence[torch.Tensor]:
    """Replace all parameters and buffers by what `move` returns for them, and return that; tied ones stay tied.

    Placeholders of streamed layers stay as they are.
    """
    import torch

    places: dict[int, list[tuple[Any, str]]] = {}
    held: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None and not tensor.is_meta:
                    held[id(tensor)] = tensor
                    places.setdefault(id(tensor), []).append((table, name))
    with torch.no_grad():
        moved = move([tensor.detach() for tensor in held.values()])
    for (key, tensor), new in zip(held.items(), moved, strict=True):
        made = torch.nn.Parameter(new, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else new
        for table, name in places[key]:
            table[name] = made
    return moved
