"""Staging: two blocks of pinned memory, by turns, through which host tensors go to a device.

One block is filled while the other is copied, and is written again only when its copies are over. Numbers are cast on
the narrower side: to a shorter dtype while the block is filled, which takes as long as filling it, and fewer bytes go
over the bus; to a longer one on the device.

Try it: ``pytest tests/studio/devices``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from studio.devices.device import Copy, Device

BLOCK = 32 << 20  # bytes
ALIGNMENT = 256  # bytes; what kernels read fastest


class Staging:
    """Two blocks of `size` bytes. Not for several threads at once."""

    def __init__(self, device: Device, size: int = BLOCK) -> None:
        import torch

        with torch.inference_mode(False):  # else they could not be written outside of it
            self._blocks = [device.pinned(size) for _ in range(2)]
        self._device, self._size = device, size
        self._flying: list[list[Copy]] = [[], []]  # by block
        self._turn = self._used = 0

    def send(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy on the device, for all that this thread queues from now on."""
        import torch

        sent = dtype if dtype.itemsize < tensor.dtype.itemsize else tensor.dtype
        made = torch.empty(tensor.shape, dtype=sent, device=self._device.name)
        source, target = tensor.reshape(-1), made.view(-1)
        step = self._size // sent.itemsize
        for begin in range(0, len(source), step):
            self._send(source[begin : begin + step], target[begin : begin + step])
        return made.to(dtype)

    def _send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """One piece, at most a block."""
        size = target.numel() * target.itemsize
        if self._used + size > self._size:
            self._turn, self._used = 1 - self._turn, 0
            for copy in self._flying[self._turn]:
                copy.join()
            self._flying[self._turn] = []
        piece = self._blocks[self._turn][self._used : self._used + size].view(target.dtype)
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        piece.copy_(source)
        copying = self._device.copy_beside(lambda: [target.copy_(piece, non_blocking=True)])
        if copying is not None:
            copying.wait()
            self._flying[self._turn].append(copying)
