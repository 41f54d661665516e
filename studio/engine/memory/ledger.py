"""The memory ledger of a device: how many bytes each holder uses, and how much a request would need.

Sizes of weights come from the headers of their safetensors files, for the dtype that they are loaded in; states are
counted tensor by tensor; the peak memory of calls is measured (see `devices.memory`). The budget limits the sum of
these three; Python, torch and the code of plugins are not included.

Try it: ``python -c "from studio.engine.memory.ledger import *; print(parse_bytes('2GiB'))"``
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.files import open_regular
from studio.units import show_bytes
from studio.weights.checksums import remedy
from studio.weights.headers import read_header
from studio.weights.loading import SMALL

MARGIN = 0.1  # fraction of the free memory at the start of the engine that is left to everything else
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SIZELESS = (str, bytes, int, float, type(None))


class Ledger:
    """Bytes in use on a device, by holder. `budget` is None if the device's memory is unknown."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.used = 0
        self.most_used = 0
        self._held: dict[Hashable, int] = {}

    @property
    def free(self) -> float:
        """Bytes that are free."""
        return math.inf if self.budget is None else self.budget - self.used

    def hold(self, holder: Hashable, size: int) -> None:
        """Set the bytes of a holder, whatever they were before."""
        self.used += size - self._held.get(holder, 0)
        self._held[holder] = size
        self.most_used = max(self.most_used, self.used)

    def release(self, holder: Hashable) -> None:
        """Remove a holder."""
        self.used -= self._held.pop(holder, 0)

    def held(self, holder: Hashable) -> int:
        """The bytes of a holder."""
        return self._held.get(holder, 0)


@dataclass(frozen=True)
class MemoryNeed:
    """The least memory that a request needs, in bytes."""

    weights: int
    state: int
    step: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.state + self.step

    def exceeds(self, budget: int) -> str:
        """The sum with its terms, compared with the budget that it exceeds."""
        return (
            f"weights {show_bytes(self.weights)} + state {show_bytes(self.state)} + step {show_bytes(self.step)}"
            f" = {show_bytes(self.total)} > budget {show_bytes(budget)}"
        )


_TEXTS = (".json", ".txt", ".jinja", ".model")  # files next to weights: configs, vocabularies, chat templates


def weight_bytes(files: Iterable[Path], dtype: str) -> int:
    """Bytes of weight files when loaded in `dtype`: exact for safetensors, whose floating-point tensors are cast; the
    file size for others.
    """
    return sum(_file_bytes(Path(file), dtype) for file in files)


def least_streamed_bytes(files: Iterable[Path], dtype: str) -> tuple[int, int]:
    """What streamed weights need, in bytes: what always stays (small layers, configs, vocabularies), and the largest
    layer.

    Raises WeightsError if a weight file is not a valid safetensors file.
    """
    rest, largest = 0, 0
    for file in map(Path, files):
        if file.suffix in _TEXTS:
            rest += file.stat().st_size
            continue
        header = _header(file)
        if header is None:
            message = f"`{file}` cannot be streamed: it is not a valid safetensors file"
            hint = remedy(file) if file.suffix == ".safetensors" else "raise `--memory`"
            raise WeightsError(file, message, hint=hint)
        layers: dict[str, int] = {}
        for name, tensor in header.items():
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0) + _tensor_bytes(tensor, dtype)
        rest += sum(size for size in layers.values() if size < SMALL)
        largest = max([largest, *(size for size in layers.values() if size >= SMALL)])
    return rest, largest


def _file_bytes(file: Path, dtype: str) -> int:
    header = _header(file)
    if header is None:
        return file.stat().st_size  # not a safetensors file: `load` reports that
    return sum(_tensor_bytes(tensor, dtype) for tensor in header.values())


def _header(file: Path) -> dict[str, Any] | None:
    """The header of a safetensors file by tensor name, or None for any other file."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return None
    with open_regular(file) as opened:
        text = read_header(opened, size)
    try:
        header: dict[str, Any] = json.loads(text or b"")
    except ValueError:
        return None
    header.pop("__metadata__", None)
    return header


def _tensor_bytes(tensor: Mapping[str, Any], dtype: str) -> int:
    begin, end = tensor["data_offsets"]
    item = _ITEM_BYTES.get(tensor["dtype"])
    return int(end - begin) if item is None else int(end - begin) // item * _DTYPE_BYTES.get(dtype, item)


def tensor_bytes(value: Any, device: str) -> int:
    """Bytes of the distinct tensors and arrays on `device` inside a state or a model; dataclasses, containers, modules
    and attributes of other objects are searched.

    A module whose memory is not in tensors (weights packed by a library) gives its size as `packed_bytes`. So does any
    other object that owns a share of something larger; it is not searched.
    """
    hidden = 0
    seen: dict[int, int] = {}
    looked: set[int] = set()
    kind, _, index = device.partition(":")
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, _SIZELESS) or id(each) in looked:
            continue
        looked.add(id(each))
        cls = type(each)  # asked in place of the object, whose own `__getattr__` may be slow
        if hasattr(cls, "untyped_storage"):
            if each.device.type == kind and (each.device.index or 0) == int(index or 0):
                held = each.untyped_storage()
                seen[held.data_ptr()] = held.nbytes()
        elif cls.__module__ == "numpy" and hasattr(cls, "nbytes"):
            if kind == "cpu":
                seen[each.__array_interface__["data"][0]] = int(each.nbytes)
        elif _is_module(cls):
            hidden += sum(getattr(part, "packed_bytes", 0) for part in each.modules())
            left += (*each.parameters(), *each.buffers())
        elif isinstance(each, list | tuple | set):
            left += each
        elif isinstance(each, Mapping):
            left += each.values()
        else:
            attributes = getattr(each, "__dict__", {}) if cls.__module__ not in ("builtins", "types") else {}
            named = hasattr(cls, "packed_bytes") or "packed_bytes" in attributes
            if named and isinstance(share := each.packed_bytes, int):
                hidden += share
            else:
                left += attributes.values()
    return sum(seen.values()) + hidden


def _is_module(cls: type) -> bool:
    """Whether this is a class of torch modules, or of what has their methods."""
    return hasattr(cls, "parameters") and hasattr(cls, "buffers") and hasattr(cls, "modules")
