"""Staging: two alternating blocks of pinned memory through which host tensors are copied to a device.

One block is filled while the other is copied, and a block is written again only when its copies are complete. Casts run
on the side with fewer bytes: to a shorter dtype while the block is filled, which costs nothing extra and sends fewer
bytes over the bus; to a longer dtype on the device.

Try it: ``pytest tests/studio/devices``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

BLOCK = 32 << 20  # bytes
ALIGNMENT = 256  # bytes; the fastest alignment for kernels


class Copy(Protocol):
    """Copies to a device that run concurrently with its computation."""

    def wait(self) -> None:
        """Make everything that this thread queues from now on wait for them."""

    def join(self) -> None:
        """Block the host until they are complete: the memory that they read may be changed from then on."""

    def seconds(self) -> float | None:
        """How long they took, or None while they run."""


class CopyTarget(Protocol):
    """What staging needs of a device."""

    name: str

    def pinned(self, size: int) -> torch.Tensor:
        """`size` bytes of pinned host memory."""

    def copy_async(self, copy: Callable[[], Iterable[torch.Tensor]]) -> Copy | None:
        """Run `copy` concurrently with the device's computation."""


class Staging:
    """Two blocks of `size` bytes. Not safe for several threads at once."""

    def __init__(self, device: CopyTarget, size: int = BLOCK) -> None:
        import torch

        with torch.inference_mode(False):  # inference tensors could not be written outside inference mode
            self._blocks = [device.pinned(size) for _ in range(2)]
        self._device, self._size = device, size
        self._flying: list[list[Copy]] = [[], []]  # by block
        self._turn = self._used = 0

    def send(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy on the device, valid for everything that this thread queues from now on."""
        import torch

        sent = dtype if dtype.itemsize < tensor.dtype.itemsize else tensor.dtype
        made = torch.empty(tensor.shape, dtype=sent, device=self._device.name)
        source, target = tensor.reshape(-1), made.view(-1)
        step = self._size // sent.itemsize
        for begin in range(0, len(source), step):
            self._send(source[begin : begin + step], target[begin : begin + step])
        return made.to(dtype)

    def _send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Send at most a block."""
        size = target.numel() * target.itemsize
        if self._used + size > self._size:
            self._turn, self._used = 1 - self._turn, 0
            for copy in self._flying[self._turn]:
                copy.join()
            self._flying[self._turn] = []
        piece = self._blocks[self._turn][self._used : self._used + size].view(target.dtype)
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        piece.copy_(source)
        copying = self._device.copy_async(lambda: [target.copy_(piece, non_blocking=True)])
        if copying is not None:
            copying.wait()
            self._flying[self._turn].append(copying)
