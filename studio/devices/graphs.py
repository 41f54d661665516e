"""Launches that are recorded once and then repeated by the device without Python: CUDA graphs.

What is recorded are addresses and sizes. So everything that differs from call to call must be in the inputs, which are
copied to where they were at the recording; the key says all else that the launches depend on. Recordings are dropped
when weights leave the device (`Device.drop_recordings`); whoever moves other tensors that were read calls `drop`. A
device that records nothing, such as a CPU, just works each time.

Try it: ``pytest tests/studio/devices/test_graphs.py``
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.devices.device import Device

if TYPE_CHECKING:
    import torch

AFTER = 3  # calls with a key before it is recorded: kernels are chosen and workspaces taken in the first ones
MOST = 64  # recordings kept


@dataclass(frozen=True)
class _Recording:
    inputs: Sequence[torch.Tensor]
    made: Any
    replay: Callable[[], None]


class Graphs:
    """Recordings by key, of one thread. `failed` says of keys that could not be recorded why; they go on as before."""

    def __init__(self, device: Device, after: int = AFTER, most: int = MOST) -> None:
        self.device, self.after, self.most = device, after, most
        self.failed: dict[Hashable, str] = {}
        self._calls: dict[Hashable, int] = {}
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()  # those used longest ago first
        device.keeps(self)

    def __len__(self) -> int:
        return len(self._kept)

    def run(self, key: Hashable, work: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Any:
        """`work(*inputs)`, recorded or repeated where the device can. What is returned holds until the next call with
        this key, which writes to the same place.

        `work` must not wait for the device. Raises what it raises.
        """
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            for place, given in zip(found.inputs, inputs, strict=True):
                place.copy_(given)
            found.replay()
            return found.made
        self._calls[key] = self._calls.get(key, 0) + 1
        if not self.device.records or self._calls[key] <= self.after or key in self.failed:
            return work(*inputs)
        return self._record(key, work, [each.clone() for each in inputs])

    def drop(self) -> None:
        """Forget all recordings: what they read has moved, or goes."""
        self._kept.clear()
        self._calls.clear()

    def _record(self, key: Hashable, work: Callable[..., Any], inputs: list[torch.Tensor]) -> Any:
        import torch

        try:
            made, replay = self.device.record(lambda: work(*inputs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.device.is_lost(error):
                raise
            self.failed[key] = (str(error).splitlines() or [type(error).__name__])[0]
            return work(*inputs)
        if len(self._kept) >= self.most:
            self._kept.popitem(last=False)
        self._kept[key] = _Recording(inputs, made, replay)
        replay()  # recording computes nothing
        return made
