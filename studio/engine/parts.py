"""Parts: the modules that models are made of, each held once however many models use it, on the device or the host.

Two parts are one if their weight files have equal content, what was built is alike in every module and every word of
its configuration, and they are packed alike. A model that leaves a CUDA device leaves its parts in pinned host memory,
if there is room for them; they come back as a copy on a stream of its own, beside what computes. The ledger of the
device counts a part once, as long as it is there; that of the host counts what was put off. This module knows nothing
of generators or of whose turn it is.

Try it: ``pytest tests/studio/engine/test_parts.py``
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import devices
from studio.devices import Event
from studio.engine.ledger import Ledger, tensor_bytes

if TYPE_CHECKING:
    import torch

    from studio.weights import Pack


@dataclass(eq=False)
class Part:
    """A module and where it is; `size` in bytes, `hashes` of its files. `ready` is the event that ends its way back.

    `saved` are the bytes by which it became smaller when it was packed.
    """

    module: Any
    size: int
    hashes: frozenset[str]
    saved: int = 0
    users: set[Any] = field(default_factory=set)
    on_device: bool = True
    ready: Event | None = None


class Parts:
    """The parts on one device. `host` is the ledger of host memory to put parts off to; None where that is no use."""

    def __init__(self, device: str, ledger: Ledger, hash_file: Callable[[Path], str], host: Ledger | None) -> None:
        self.device, self.ledger, self.host, self._hash = devices.device(device), ledger, host, hash_file
        self._parts: dict[Hashable, Part] = {}
        self._made = threading.local()

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
        for part in parts:
            _replace(part.module, self.device.to_host)
            part.on_device = False
            self.ledger.release(part)
            self.host.hold(part, part.size)

    def bring_back(self, parts: Collection[Part]) -> None:
        """Begin to copy parts to the device; `wait` before they are used."""
        for part in parts:
            if part.on_device:
                continue
            part.ready = self._beside(part.module)
            part.on_device = True
            self.ledger.hold(part, part.size)
            if self.host is not None:
                self.host.release(part)

    def wait(self, parts: Collection[Part]) -> None:
        """Let what computes from now on wait for the copies of these parts."""
        for part in parts:
            if part.ready is not None:
                self.device.wait_for(part.ready)
                part.ready = None

    def _beside(self, module: torch.nn.Module) -> Event | None:
        """Begin to copy a module to the device; the event ends the copy."""
        made: list[torch.Tensor] = []

        def come(tensor: torch.Tensor) -> torch.Tensor:
            made.append(tensor.to(self.device.name, non_blocking=True, copy=True))
            return made[-1]

        def copy() -> list[torch.Tensor]:
            _replace(module, come)
            return made

        return self.device.copy_beside(copy)


def _replace(module: torch.nn.Module, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put another tensor in the place of each parameter and buffer; those that are tied stay so."""
    import torch

    moved: dict[int, Any] = {}
    with torch.no_grad():
        for owner in module.modules():
            for table in (owner._parameters, owner._buffers):
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in moved:
                        new = move(tensor.detach())
                        is_parameter = isinstance(tensor, torch.nn.Parameter)
                        moved[id(tensor)] = (
                            tensor,
                            torch.nn.Parameter(new, requires_grad=False) if is_parameter else new,
                        )
                    table[name] = moved[id(tensor)][1]
