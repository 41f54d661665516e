"""States as JSON and tensors, and back, bit for bit.

A state may contain None, booleans, numbers, str, lists, tuples, dicts, tensors and `Rng`, nested to any depth; fields
declared with `unsaved()` are left out. JSON lacks tuples, keys other than str, and NaN, so those are objects with one
key, a tag. A tensor or an Rng that is referenced twice is one object again afterwards; tensors that only share memory
become separate. torch is imported only if there are tensors.

Try it: ``python -c "from studio.engine.checkpoints.encoding import *; print(encode({'a': (1, float('nan'))}))"``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from studio.generator import UNSAVED, Rng, State

if TYPE_CHECKING:
    import torch

_S = TypeVar("_S", bound=State)


class Unsavable(Exception):
    """A value of a type that cannot be saved; the message names the field and the type."""


class Damaged(Exception):
    """Saved data is inconsistent; the message says where."""


class Encoder:
    """Turns values into JSON; `tensors` and `rngs` collect what JSON cannot hold."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.rngs: list[dict[str, Any]] = []
        self._seen: dict[int, dict[str, Any]] = {}
        self._kept: list[object] = []  # keeps objects alive while their ids are in `_seen`

    def encode(self, value: Any, where: str) -> Any:
        """Return `value` as JSON; `where` names it in errors. Raises Unsavable."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if kind is list:
            return [self.encode(each, f"{where}[{i}]") for i, each in enumerate(value)]
        if kind is tuple:
            return {"tuple": [self.encode(each, f"{where}[{i}]") for i, each in enumerate(value)]}
        if kind is dict:
            pairs = value.items()
            return {"dict": [[self.encode(k, f"{where}.keys()"), self.encode(v, f"{where}[{k!r}]")] for k, v in pairs]}
        if id(value) not in self._seen:
            self._seen[id(value)] = self._object(value, where)
            self._kept.append(value)
        return self._seen[id(value)]

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        if type(value) is Rng:
            self.rngs.append(value.state_dict())
            return {"rng": len(self.rngs) - 1}
        kind = type(value)
        if (kind.__module__, kind.__name__) == ("torch", "Tensor"):
            return self._tensor(value, where)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        raise Unsavable(f"`{where}` is a {name}; a state may hold tensors, JSON values, tuples and Rng")

    def _tensor(self, value: torch.Tensor, where: str) -> dict[str, Any]:
        import torch

        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise Unsavable(f"`{where}` is a tensor that is sparse, quantized, nested or on no device")
        name = str(len(self.tensors))
        plain = value.detach().resolve_conj().resolve_neg()
        copy = torch.empty(plain.shape, dtype=plain.dtype)
        self.tensors[name] = copy.copy_(plain)  # on the CPU, contiguous, not shared
        return {"tensor": name, "stride": _dense_stride(plain), "cpu": value.device.type == "cpu"}


def encode_state(state: State) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a state's fields and random generators as JSON, and its tensors by name. Raises Unsavable."""
    encoder = Encoder()
    try:
        values = {name: encoder.encode(getattr(state, name), name) for name, kept in _fields(state) if kept}
    except RecursionError:
        raise Unsavable("a field contains itself, or is nested too deeply") from None
    return {"fields": values, "rngs": encoder.rngs}, encoder.tensors


def decode_state(saved: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], first: _S, device: str) -> _S:
    """Make a state of the class of `first` from the result of `encode_state`; tensors that were not on the CPU go to
    `device`.

    Unsaved fields come from `first`. The class's `__init__` does not run: what it derived is in the fields. Raises
    Damaged.
    """
    kind = type(first)
    names = {name for name, kept in _fields(first) if kept}
    try:
        if set(saved["fields"]) != names:
            differing = ", ".join(f"`{name}`" for name in sorted(names.symmetric_difference(saved["fields"])))
            raise Damaged(f"the fields of its state differ from those of {kind.__name__} now: {differing}")
        decoder = _Decoder(tensors, [Rng.from_state_dict(each) for each in saved["rngs"]], device)
        values = {name: decoder.decode(value) for name, value in saved["fields"].items()}
        values |= {name: getattr(first, name) for name, kept in _fields(first) if not kept}
    except Damaged:
        raise
    except Exception as error:  # hostile data may fail anywhere, but only data is read
        raise Damaged(f"its state cannot be read: {type(error).__name__}: {error}") from error
    state = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(state, name, value)
    return state


def _fields(state: State) -> list[tuple[str, bool]]:
    """Each field's name, and whether it is saved."""
    return [(field.name, not field.metadata.get(UNSAVED)) for field in fields(state)]


class _Decoder:
    def __init__(self, tensors: Mapping[str, torch.Tensor], rngs: list[Rng], device: str) -> None:
        self._tensors, self._rngs, self._device = tensors, rngs, device
        self._placed: dict[str, torch.Tensor] = {}
        self._tags: dict[str, Callable[[Any], Any]] = {
            "tuple": lambda inner: tuple(self.decode(each) for each in inner),
            "dict": lambda inner: {self.decode(key): self.decode(value) for key, value in inner},
            "float": float,
            "rng": lambda index: self._rngs[index],
        }

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return self._tensor(**value)
        ((tag, inner),) = value.items()
        return self._tags[tag](inner)

    def _tensor(self, tensor: str, stride: list[int] | None, cpu: bool) -> torch.Tensor:
        import torch

        if tensor not in self._placed:
            saved = self._tensors[tensor]
            device = "cpu" if cpu else self._device
            if stride is not None:
                if 1 + sum((n - 1) * s for n, s in zip(saved.shape, stride, strict=True)) != saved.numel():
                    raise Damaged("its state cannot be read: the strides of a tensor do not fit its shape")
                made = torch.empty_strided(saved.shape, stride, dtype=saved.dtype, device=device)
            else:
                made = torch.empty(saved.shape, dtype=saved.dtype, device=device)
            self._placed[tensor] = made.copy_(saved)
        return self._placed[tensor]


def _dense_stride(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a dense tensor in another memory order (channels last, transposed), else None.

    They are saved because kernels are chosen by them, which can change the last bit.
    """
    if tensor.is_contiguous() or 0 in tensor.shape:
        return None
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return None
        expected *= size
    return list(tensor.stride())
