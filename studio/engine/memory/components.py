"""Parts: the modules that models are made of, each held once however many models use it, on the device or the host.

Two parts are one if their weight files have equal content, what was built is alike in every module and every word of
its configuration, and they are packed alike. A model that leaves a CUDA device leaves its parts in pinned host memory,
if there is room for them; they come back as a copy on a stream of its own, beside what computes. The ledger of the
device counts a part once, as long as it is there; that of the host counts what was put off. This module knows nothing
of generators or of whose turn it is.

Try it: ``pytest tests/studio/engine/memory/test_components.py``
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import devices
from studio.devices import Copy
from studio.engine.memory.ledger import Ledger, tensor_bytes

if TYPE_CHECKING:
    import torch

    from studio.weights.loading import Pack


@dataclass(eq=False)
class Part:
    """A module and where it is; `size` in bytes, `hashes` of its files. `coming` is its way back to the
    device, as long as nobody has waited for that, and `return_s` what the last one took.

    `saved` are the bytes by which it became smaller when it was packed.
    """

    module: Any
    size: int
    hashes: frozenset[str]
    saved: int = 0
    users: set[Any] = field(default_factory=set)
    on_device: bool = True
    coming: Copy | None = None
    return_s: float | None = None


class Parts:
    """The parts on one device. `host` is the ledger of host memory to put parts off to; None where that is no use."""

    def __init__(self, device: str, ledger: Ledger, hash_file: Callable[[Path], str], host: Ledger | None) -> None:
        self.device, self.ledger, self.host, self._hash = devices.device(device), ledger, host, hash_file
        self._parts: dict[Hashable, Part] = {}
        self._made = threading.local()
        self._landed: list[tuple[Part, Copy]] = []  # whose time is not read yet

    @contextmanager
    def collecting(self) -> Iterator[list[Part]]:
        """Collect the parts that are asked for meanwhile in this thread."""
        self._made.parts = []
        try:
            yield self._made.parts
        finally:
            self._made.parts = []

    def part(
        self, built: torch.nn.Module, files: Sequence[Path], dtype: object, fill: Callable[[], Any], pack: Pack | None
    ) -> Any:
        """Return the module that is held for what `built` is, or `built` once it is filled and packed."""
        hashes = frozenset(self._hash(file) for file in files)
        key = (repr(built), str(getattr(built, "config", "")), hashes, str(dtype), pack)
        found = self._parts.get(key)
        if found is None:
            fill()
            filled = size = tensor_bytes(built, self.device.name)
            if pack is not None:
                pack(built)
                size = tensor_bytes(built, self.device.name)
            found = self._parts[key] = Part(built, size, hashes, saved=max(0, filled - size))
        self._made.parts.append(found)
        return found.module

    def there(self, hashes: Collection[str]) -> int:
        """Bytes on the device of parts that a model with these weight files will share."""
        return sum(
            part.size for part in self._parts.values() if part.on_device and part.users and part.hashes <= {*hashes}
        )

    def use(self, parts: Collection[Part], user: Hashable) -> None:
        """Note that a model uses these."""
        for part in parts:
            part.users.add(user)
            self.ledger.hold(part, part.size)

    def leave(self, parts: Collection[Part], user: Hashable) -> None:
        """Note that a model is no more: what nobody else uses goes."""
        for part in parts:
            part.users.discard(user)
            if not part.users:
                self.ledger.release(part)
                if self.host is not None:
                    self.host.release(part)
        self.forget_unused()

    def forget_unused(self) -> None:
        """Let go of what no model uses, as after a load that failed."""
        self._parts = {key: part for key, part in self._parts.items() if part.users}

    def put_off(self, parts: Collection[Part]) -> None:
        """Copy parts to host memory, and free the device of them."""
        assert self.host is not None
        self.wait(parts)  # one that is still on its way back must not be saved half copied
        self.device.drop_recordings()
        for part in parts:
            _replace(part.module, self.device.to_host)
            part.on_device = False
            self.ledger.release(part)
            self.host.hold(part, self.device.host_bytes(part.size))

    def bring_back(self, parts: Collection[Part]) -> None:
        """Begin to copy parts to the device; `wait` before they are used."""
        for part in parts:
            if part.on_device:
                continue
            part.coming = self._beside(part.module)
            part.on_device = True
            self.ledger.hold(part, part.size)
            if self.host is not None:
                self.host.release(part)

    def wait(self, parts: Collection[Part]) -> None:
        """Let what computes from now on wait for the copies of these parts."""
        for part in parts:
            if part.coming is not None:
                part.coming.wait()
                self._landed.append((part, part.coming))
                part.coming = None

    def return_s(self, parts: Collection[Part]) -> float | None:
        """Seconds that bringing these back took when it was last done, or None if that is not known."""
        known = [(part, seconds) for part, copy in self._landed if (seconds := copy.seconds()) is not None]
        for part, seconds in known:
            part.return_s = seconds
        done = {part for part, _ in known}
        self._landed = [each for each in self._landed if each[0] not in done]
        seconds_of = [part.return_s for part in parts if part.return_s is not None]
        return sum(seconds_of) if seconds_of else None

    def _beside(self, module: torch.nn.Module) -> Copy | None:
        """Begin to copy a module to the device."""

        def come(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [tensor.to(self.device.name, non_blocking=True, copy=True) for tensor in tensors]

        def copy() -> Sequence[torch.Tensor]:
            return _replace(module, come)

        return self.device.copy_beside(copy)


def _replace(
    module: torch.nn.Module, move: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
) -> Sequence[torch.Tensor]:
    """Put other tensors in the place of all parameters and buffers, and return them; those that are tied stay so."""
    import torch

    places: dict[int, list[tuple[Any, str]]] = {}
    held: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    held[id(tensor)] = tensor
                    places.setdefault(id(tensor), []).append((table, name))
    with torch.no_grad():
        moved = move([tensor.detach() for tensor in held.values()])
    for (key, tensor), new in zip(held.items(), moved, strict=True):
        made = torch.nn.Parameter(new, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else new
        for table, name in places[key]:
            table[name] = made
    return moved
