"""CUDA graphs: launches that are recorded once and then replayed by the device without Python.

A recording contains addresses and sizes. So everything that differs from call to call must be in the inputs, which are
copied to the recorded addresses; the key must contain everything else that the launches depend on. Built-in and other
plugins use `Graphs`::

    model.graphs = Graphs(device, model.net)  # in `load`
    x0 = model.graphs.run(("step", guided), work, [x, t, text])  # in `step`

A device that cannot record, such as a CPU, calls `work` each time. Recordings are dropped when weights leave the device
or move, when modules change, and when memory runs out.

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
AFTER = 3  # calls with a key before it is recorded: the first ones choose kernels and allocate workspaces
MOST = 64  # stored recordings
_MOST_COUNTED = 4096  # keys whose calls are counted
_read: ContextVar[list[object] | None] = ContextVar("studio_recording", default=None)


def keep_alive(read: T) -> T:
    """Return `read` unchanged, and keep it alive as long as the recording that is being made.

    For tensors on the device that `work` reads from a cache, which may delete them.
    """
    if (recording := _read.get()) is not None:
        recording.append(read)
    return read


@dataclass(frozen=True)
class Observer:
    """Collects what happens in Python during a recording, to report it again at each replay.

    Attributes:
        key: returns the current value of other things that the launches depend on.
        collect: collects reports within a block.
        report: reports one of them again.
    """

    key: Callable[[], Hashable]
    collect: Callable[[], AbstractContextManager[set[str]]]
    report: Callable[[str], None]


_observers: list[Observer] = []


def register(observer: Observer) -> None:
    """Add an observer to all later recordings."""
    _observers.append(observer)


@dataclass(frozen=True)
class _StoredGraph:
    """A recording, its inputs, the other tensors that it reads, and the reports of each observer."""

    inputs: Sequence[torch.Tensor]
    made: Any
    replay: Callable[[], None]
    read: list[object]
    reported: Sequence[tuple[Observer, set[str]]]


class Graphs:
    """The recordings (CUDA graphs) of one thread, by key. `reads` are the modules whose weights `work` reads.

    `failed` has the reasons of keys that could not be recorded; their calls run unrecorded.
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
        self._recordings: OrderedDict[Hashable, _StoredGraph] = OrderedDict()  # those used longest ago first
        self.device.register_graphs(self)

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, key: Hashable, work: Callable[..., T], inputs: Sequence[torch.Tensor]) -> T:
        """`work(*inputs)`, recorded or replayed if the device can.

        Args:
            key: everything that the launches depend on besides the inputs: branches, number of rows. Shapes, strides
                and dtypes of the inputs are added to it.
            work: a function of the inputs and the modules' weights. It must not wait for the device or copy to it.
            inputs: tensors on the device, with everything that differs between calls with one key.

        The result is valid until the next call, which may write to the same memory. Raises what `work` raises.
        """
        if not (self.device.records_graphs and self._may_record()):
            return work(*inputs)
        around = (observer.key() for observer in _observers)
        whole = (key, *around, *((each.shape, each.stride(), each.dtype) for each in inputs))
        if (found := self._recordings.get(whole)) is not None:
            self._recordings.move_to_end(whole)
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
        """Delete all recordings. If memory is `short`, they are made again only after twice as many calls as before."""
        if short and (self._recordings or self._calls):
            self.after = 2 * max(1, self.after)
        self._recordings.clear()
        self._calls.clear()

    def _may_record(self) -> bool:
        """Whether all weights are on the device (streamed weights are not). Drops recordings if weights have moved or
        modules have changed.
        """
        if self._weights is None or not self._weights.unchanged():
            self.drop()
            self._weights = _Weights(self._reads, self.device.kind)
        return self._weights.fixed and not self._weights.learns()

    def _repeat(self, found: _StoredGraph) -> Any:
        found.replay()
        for observer, reported in found.reported:
            for each in reported:
                observer.report(each)
        return found.made

    def _record(self, key: Hashable, whole: Hashable, work: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Any:
        import torch

        read: list[object] = []
        token = _read.set(read)
        try:
            places = [each.clone() for each in inputs]
            with ExitStack() as stack:
                reported = [(each, stack.enter_context(each.collect())) for each in _observers]
                made, replay = self.device.record(lambda: work(*places))
        except torch.OutOfMemoryError:
            self.device.drop_recordings(short=True)
        except RuntimeError as error:
            if self.device.is_lost(error):
                raise
            self.failed[key] = (str(error).splitlines() or [type(error).__name__])[0]
        else:
            if len(self._recordings) >= self.most:
                self._recordings.popitem(last=False)
            self._recordings[whole] = recording = _StoredGraph(places, made, replay, read, reported)
            return self._repeat(recording)  # recording computes nothing, so replay
        finally:
            _read.reset(token)
        return work(*inputs)


class _Weights:
    """The addresses of the tensors of modules, and their submodules. `fixed` says whether all are on the device."""

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
        """Whether gradients are enabled."""
        import torch

        return self._learning and torch.is_grad_enabled()

    def _addresses(self) -> list[int]:
        return [each.data_ptr() for each in self._tensors]

    def unchanged(self) -> bool:
        """Whether nothing has changed; 0.1 ms for a thousand modules."""
        now = chain.from_iterable(map(dict.values, self._tables))
        same = list(map(len, self._tables)) == self._lengths and all(map(is_, now, self._things))
        return same and (not self.fixed or self._addresses() == self._places)
