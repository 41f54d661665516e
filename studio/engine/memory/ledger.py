"""The memory ledger of one device: who holds how many bytes, and what a plan would come to.

Weights are claimed from the headers of their safetensors files, in the dtype they are loaded in; states are counted
tensor by tensor; what a call takes besides is measured (see `gauge`) and remembered. The budget is what these three may
come to together: Python, torch and the plugins' own code are outside of it. This module knows nothing of requests.

Try it: ``python -c "from studio.engine.memory.ledger import *; print(parse_bytes('2GiB'))"``
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.files import open_regular
from studio.units import show_bytes
from studio.weights.headers import read_header
from studio.weights.loading import SMALL

MARGIN = 0.1  # of what is free when the engine starts: left to everything else
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SIZELESS = (str, bytes, int, float, type(None))


class Ledger:
    """Bytes held on a device, by holder. `budget` None means that nothing is known of the device's memory."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.used = 0
        self.most_used = 0
        self._held: dict[Hashable, int] = {}

    @property
    def free(self) -> float:
        """Bytes that are left."""
        return math.inf if self.budget is None else self.budget - self.used

    def hold(self, holder: Hashable, size: int) -> None:
        """Note what a holder has now, whatever it had before."""
        self.used += size - self._held.get(holder, 0)
        self._held[holder] = size
        self.most_used = max(self.most_used, self.used)

    def release(self, holder: Hashable) -> None:
        """Note that a holder has nothing any more."""
        self.used -= self._held.pop(holder, 0)

    def held(self, holder: Hashable) -> int:
        """What a holder has."""
        return self._held.get(holder, 0)


@dataclass(frozen=True)
class Sum:
    """What a request needs at the least, in bytes."""

    weights: int
    state: int
    step: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.state + self.step

    def exceeds(self, budget: int) -> str:
        """The sum spelt out, against a budget that it does not fit into."""
        return (
            f"weights {show_bytes(self.weights)} + state {show_bytes(self.state)} + step {show_bytes(self.step)}"
            f" = {show_bytes(self.total)} > budget {show_bytes(budget)}"
        )


_TEXTS = (".json", ".txt", ".jinja", ".model")  # beside weights: configs, vocabularies, chat templates


def weight_bytes(files: Iterable[Path], dtype: str) -> int:
    """Bytes that weight files take when loaded in `dtype`: exact for safetensors, whose floating-point tensors are
    cast; the size of the file for others.
    """
    return sum(_file_bytes(Path(file), dtype) for file in files)


def least_streamed_bytes(files: Iterable[Path], dtype: str, at_once: int = 1) -> int:
    """Bytes that weight files take at the least when they are streamed: small layers, the largest one as often as
    layers are on the device `at_once`, and all of the configs and vocabularies beside them.

    Raises WeightsError where a file of weights is not a sound safetensors file: its header tells what is streamed.
    """
    rest, largest = 0, 0
    for file in map(Path, files):
        if file.suffix in _TEXTS:
            rest += file.stat().st_size
            continue
        header = _header(file)
        if header is None:
            message = f"`{file}` cannot be streamed: it is not a sound safetensors file"
            raise WeightsError(file, message, hint="install the package again, or give it more with `--memory`")
        layers: dict[str, int] = {}
        for name, tensor in header.items():
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0) + _tensor_bytes(tensor, dtype)
        rest += sum(size for size in layers.values() if size < SMALL)
        largest = max([largest, *(size for size in layers.values() if size >= SMALL)])
    return rest + largest * at_once


def _file_bytes(file: Path, dtype: str) -> int:
    header = _header(file)
    if header is None:
        return file.stat().st_size  # not what its name says: `load` will tell
    return sum(_tensor_bytes(tensor, dtype) for tensor in header.values())


def _header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says of each tensor, or None if it is no such file."""
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
    """Bytes of the distinct tensors and arrays on `device` inside a state or a model: dataclasses, containers, modules
    and the plain attributes of other objects are looked into.

    A module whose memory is no tensor (weights that a library has packed) says how much it is in `packed_bytes`. So
    does an object of another kind that has a share in something larger; it is not looked into.
    """
    hidden = 0
    seen: dict[int, int] = {}
    looked: set[int] = set()
    kind, _, index = device.partition(":")
    left = [value]
    while left:
        each = left.pop()
        if id(each) in looked or isinstance(each, _SIZELESS):
            continue
        looked.add(id(each))
        storage = getattr(each, "untyped_storage", None)
        if storage is not None:
            if each.device.type == kind and (each.device.index or 0) == int(index or 0):
                held = storage()
                seen[held.data_ptr()] = held.nbytes()
        elif type(each).__module__ == "numpy" and hasattr(each, "nbytes"):
            if kind == "cpu":
                seen[each.__array_interface__["data"][0]] = int(each.nbytes)
        elif not _modules(each) and isinstance(share := getattr(each, "packed_bytes", None), int):
            hidden += share
        else:
            hidden += sum(getattr(part, "packed_bytes", 0) for part in _modules(each))
            left.extend(_inside(each))
    return sum(seen.values()) + hidden


def _modules(value: Any) -> Iterable[Any]:
    """The modules of one of torch's, itself included; nothing for anything else."""
    is_module = hasattr(value, "parameters") and hasattr(value, "buffers") and hasattr(value, "modules")
    return value.modules() if is_module else ()


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set):
        return value
    if hasattr(value, "parameters") and hasattr(value, "buffers"):
        return [*value.parameters(), *value.buffers()]
    if dataclasses.is_dataclass(value) or type(value).__module__.partition(".")[0] not in ("builtins", "types"):
        return getattr(value, "__dict__", {}).values()
    return ()
