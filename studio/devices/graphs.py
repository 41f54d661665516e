"""Launches that are recorded once and then repeated by the device without Python: CUDA graphs.

A recording holds addresses and sizes. So all that differs from call to call must be in the inputs, which are copied to
where they were at the recording; the key says all else that the launches depend on. `Graphs` is the one way to use
them, for Studio's own plugins and for others::

    model.graphs = Graphs(device, model.net)  # in `load`
    x0 = model.graphs.run(("step", guided), work, [x, t, text])  # in `step`

A device that records nothing, such as a CPU, calls `work` each time. Recordings are dropped when weights leave the
device or lie elsewhere, when modules are changed, and when memory runs short.

Try it: ``pytest tests/studio/devices/test_graphs.py``
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any, TypeVar

from studio import devices
from studio.devices.device import Device

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
AFTER = 3  # calls with a key before it is recorded: kernels are chosen and workspaces taken in the first ones
MOST = 64  # recordings kept
_MOST_COUNTED = 4096  # keys whose calls are counted
_read: ContextVar[list[object] | None] = ContextVar("studio_recording", default=None)


def keep(read: T) -> T:
    """The tensor, or what holds tensors, as it is: a recording that is made now keeps it for as long as it is repeated.

    For tensors on the device that `work` takes from a cache, which might let go of them.
    """
    if (kept := _read.get()) is not None:
        kept.append(read)
    return read


@dataclass(frozen=True)
class Witness:
    """Who is told of what happens while launches are asked for, and must be told again when they are repeated.

    Attributes:
        key: what the launches depend on besides, as it is now.
        watch: collects what is told within a block.
        tell: tells it again.
    """

    key: Callable[[], Hashable]
    watch: Callable[[], AbstractContextManager[set[str]]]
    tell: Callable[[str], None]


_witnesses: list[Witness] = []


def register(witness: Witness) -> None:
    """Have a witness to all recordings from now on."""
    _witnesses.append(witness)


@dataclass(frozen=True)
class _Kept:
    """A recording, the inputs that it reads, what else it reads, and what each witness was told."""

    inputs: Sequence[torch.Tensor]
    made: Any
    replay: Callable[[], None]
    read: list[object]
    told: Sequence[tuple[Witness, set[str]]]


class Graphs:
    """Recordings by key, of one thread. `reads` are the modules whose weights `work` reads.

    `failed` says of keys that could not be recorded why; they go on as before.
    """

    def __init__(
        self, device: str | torch.device | Device, *reads: torch.nn.Module, after: int = AFTER, most: int = MOST
    ) -> None:
        self.device = device if isinstance(device, Device) else devices.device(str(device))
        self.after, self.most = after, most
        self.failed: dict[Hashable, str] = {}
        self._reads = reads
        self._weights: _Weights | None = None
        self._calls: dict[Hashable, int] = {}
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()  # those used longest ago first
        self.device.keeps(self)

    def __len__(self) -> int:
        return len(self._kept)

    def run(self, key: Hashable, work: Callable[..., T], inputs: Sequence[torch.Tensor]) -> T:
        """`work(*inputs)`, recorded or repeated where the device can.

        Args:
            key: all that the launches depend on besides the inputs: which branches are taken, how many rows there are.
                Shapes, strides and dtypes of the inputs are added to it.
            work: a function of the inputs and the modules' weights. It must neither wait for the device nor copy to it.
            inputs: tensors on the device, with all that differs between calls of one key.

        What is returned holds until the next call, which may write to the same place. Raises what `work` raises.
        """
        if not (self.device.records and self._may_record()):
            return work(*inputs)
        around = (witness.key() for witness in _witnesses)
        whole = (key, *around, *((each.shape, each.stride(), each.dtype) for each in inputs))
        if (found := self._kept.get(whole)) is not None:
            self._kept.move_to_end(whole)
            for place, given in zip(found.inputs, inputs, strict=True):
                place.copy_(given)
            made: T = self._repeat(found)
            return made
        if len(self._calls) >= _MOST_COUNTED:
            self._calls.clear()
        self._calls[whole] = self._calls.get(whole, 0) + 1
        if self._calls[whole] <= self.after or key in self.failed:
            return work(*inputs)
        made = self._record(key, whole, work, inputs)
        return made

    def drop(self, *, short: bool = False) -> None:
        """Forget all recordings: what they read has moved, or goes. If memory is `short`, they are made again
        only after twice as many calls as before.
        """
        if short and (self._kept or self._calls):
            self.after = 2 * max(1, self.after)
        self._kept.clear()
        self._calls.clear()

    def _may_record(self) -> bool:
        """Whether all weights are on the device, where recordings read them; those that are streamed are not. If they
        have moved, or the modules have changed, recordings are dropped.
        """
        if self._weights is None or not self._weights.unchanged():
            self.drop()
            self._weights = _Weights(self._reads, self.device.kind)
        return self._weights.fixed and not self._weights.learns()

    def _repeat(self, found: _Kept) -> Any:
        found.replay()
        for witness, told in found.told:
            for each in told:
                witness.tell(each)
        return found.made

    def _record(self, key: Hashable, whole: Hashable, work: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Any:
        import torch

        read: list[object] = []
        token = _read.set(read)
        try:
            places = [each.clone() for each in inputs]
            with ExitStack() as stack:
                told = [(each, stack.enter_context(each.watch())) for each in _witnesses]
                made, replay = self.device.record(lambda: work(*places))
        except torch.OutOfMemoryError:
            self.device.drop_recordings(short=True)
        except RuntimeError as error:
            if self.device.is_lost(error):
                raise
            self.failed[key] = (str(error).splitlines() or [type(error).__name__])[0]
        else:
            if len(self._kept) >= self.most:
                self._kept.popitem(last=False)
            self._kept[whole] = kept = _Kept(places, made, replay, read, told)
            return self._repeat(kept)  # recording computes nothing
        finally:
            _read.reset(token)
        return work(*inputs)


class _Weights:
    """Where the tensors of modules lie, and what the modules consist of. `fixed` says whether all is on the device
    and stays there.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], kind: str) -> None:
        import torch

        parts = [part for module in modules for part in module.modules()]
        self._tables: list[dict[str, Any]] = [
            table for part in parts for table in (part._modules, part._parameters, part._buffers)
        ]
        self._things = list(chain.from_iterable(map(dict.values, self._tables)))
        self._lengths = list(map(len, self._tables))
        self._tensors = [each for each in self._things if isinstance(each, torch.Tensor)]
        self.fixed = all(each.device.type == kind for each in self._tensors)
        self._learning = any(each.requires_grad for each in self._tensors)
        self._places = self._addresses() if self.fixed else []

    def learns(self) -> bool:
        """Whether gradients are to be computed."""
        import torch

        return self._learning and torch.is_grad_enabled()

    def _addresses(self) -> list[int]:
        return [each.data_ptr() for each in self._tensors]

    def unchanged(self) -> bool:
        """Whether all is as it was; 0.1 ms for a thousand modules."""
        now = chain.from_iterable(map(dict.values, self._tables))
        same = list(map(len, self._tables)) == self._lengths and all(map(is_, now, self._things))
        return same and (not self.fixed or self._addresses() == self._places)
