"""NaN and infinity checks of states, logits and pixels, at the cost of a sum.

A sum is NaN or infinite if any of its numbers is; only then are the numbers counted. On the CPU the sum is read at
once. On other devices reading would synchronize, so a state's sums stay on the device until a preview or the output is
read anyway, and the error then names the first bad step.

The host checks every state that `start` and `step` return: its floating-point tensors and arrays, except fields
declared with `studio.unsaved()`. Converting to bytes hides NaN, so generators convert pixels with `studio.pixels`.
Importing this module loads no torch.

Try it: ``studio.pixels(torch.tensor([0.5, float("nan")]))`` raises NotFinite
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from studio import devices
from studio.generator import UNSAVED, State

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = frozenset({int, float, bool, str, bytes, type(None)})
_MOST = 64  # of a long tuple only the last ones are looked at: the others were, when they were new
_HINT = 'try a lower guidance scale, other inputs, or float32: `Studio(dtype="float32")`'
_DAMAGED = "the model is damaged: download it again, or use another"


class NotFinite(ArithmeticError):
    """Numbers are NaN or infinite. `hint` is the remedy."""

    def __init__(self, message: str, hint: str = _HINT) -> None:
        super().__init__(message)
        self.hint = hint

    def because(self, model: Any) -> NotFinite:
        """The same error, or one that says that the model's weights are the cause."""
        found = bad_weights(model)
        if not found:
            return self
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return NotFinite(f"{self}; the weights themselves contain NaN or infinity: `{found[0]}`{more}", _DAMAGED)


class Reading:
    """The sum of a tensor's or an array's floats, read at once on the CPU, elsewhere when `read` is called."""

    def __init__(self, x: Any, what: str) -> None:
        """`what` names the numbers in the error. Raises NotFinite on the CPU."""
        self.x, self.what, self.total = x, what, _total(x)
        if not _elsewhere(x):
            self.read()

    def read(self) -> None:
        """Wait for the sum. Raises NotFinite, which tells how many numbers are bad."""
        if math.isfinite(float(self.total)):
            return
        count, nans, infinite = _count(self.x)
        if nans or infinite:
            raise NotFinite(f"{self.what}: {nans:,} of {count:,} values are NaN and {infinite:,} infinite")


def pixels(x: Tensor) -> Tensor:
    """Convert pixels from floats in [0, 1], of any shape and device, to uint8 on the CPU; values outside are clipped.

    Raises NotFinite for NaN and infinity, which would become black and white.
    """
    reading = Reading(x, "the decoded pixels")
    made = devices.download(x.clamp(0, 1).mul(255).round().byte())
    reading.read()
    return made


def look(old: State | None, new: object) -> list[Tensor]:
    """Check the new values in a state; return unread sums of other devices. Raises NotFinite for values on the CPU."""
    late: list[Tensor] = []
    if not isinstance(new, State):
        return late
    unsaved = _unsaved(type(new))  # type: ignore[arg-type]  # mypy takes no class of these for hashable
    for name, value in vars(new).items():
        if type(value) in _PLAIN or name in unsaved:
            continue
        before = None if old is None else getattr(old, name, None)
        if value is before or not (new_floats := list(_floats(value))):
            continue
        known = set(map(id, _floats(before)))
        for each in new_floats:
            if id(each) not in known:
                reading = Reading(each, f"`{name}`")
                if _elsewhere(each):
                    late.append(reading.total)
    return late


def read_late(late: Sequence[tuple[str, Tensor]]) -> None:
    """Read sums that were left on the device, each with where it arose. Raises NotFinite for the first bad one."""
    if not late:
        return
    import torch

    good = torch.stack([total.isfinite() for _, total in late]).tolist()
    for (where, _), fine in zip(late, good, strict=True):
        if not fine:
            raise NotFinite(f"NaN or infinity in its state since {where}")


def bad_weights(model: Any) -> list[str]:
    """Names of the parameters that hold NaN or infinity, and of buffers that hold NaN, in a model of any form."""
    return [
        f"{owner}.{name}".lstrip(".")
        for owner, module in _modules(model, "", set(), 4)
        for name, value, also_infinite in _tensors(module)
        if _is_bad(value, also_infinite)
    ]


def _is_bad(value: Any, also_infinite: bool) -> bool:
    if value.device.type == "meta" or not value.is_floating_point():
        return False
    if math.isfinite(float(_total(value))):
        return False
    _, nans, infinite = _count(value)
    return bool(nans or (also_infinite and infinite))


def _tensors(module: Any) -> Iterator[tuple[str, Any, bool]]:
    for name, value in module.named_parameters():
        yield name, value, True
    for name, value in module.named_buffers():  # masks are infinite on purpose
        yield name, value, False


def _modules(value: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """The torch modules in a value, with their names."""
    if depth < 0 or id(value) in seen or type(value) in _PLAIN or isinstance(value, type):
        return
    seen.add(id(value))
    if hasattr(value, "named_parameters"):
        yield name, value
        return
    inner: Any = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    if isinstance(value, list | tuple):
        inner = dict(enumerate(value))
    for key, each in list(inner.items()):
        yield from _modules(each, str(key), seen, depth - 1)


@cache
def _unsaved(kind: Hashable) -> frozenset[str]:
    """The unsaved fields of a class of states."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return frozenset(each.name for each in fields if UNSAVED in each.metadata)


def _floats(value: Any) -> Iterator[Any]:
    """The floating-point tensors and arrays in a field's value."""
    if isinstance(value, tuple | list):
        for each in value[-_MOST:]:
            if type(each) not in _PLAIN:
                yield from _floats(each)
    elif hasattr(cls := type(value), "untyped_storage"):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif cls.__module__ == "numpy":
        if hasattr(cls, "dtype") and value.dtype.kind in "fc":
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _floats(each)


def _elsewhere(x: Any) -> bool:
    """Whether reading one of its numbers synchronizes a device."""
    return hasattr(type(x), "untyped_storage") and x.device.type != "cpu"


def _total(x: Any) -> Any:
    """A number that is not finite if any of `x` is not; halves are summed as float32."""
    if not hasattr(type(x), "untyped_storage"):
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            return abs(x.sum(dtype=np.complex128 if x.dtype.kind == "c" else np.float64))
    import torch

    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
    if x.dtype.itemsize == 1:  # float8 knows no sum
        x = x.float()
    return x.sum(dtype=torch.float32 if x.dtype.itemsize < 4 else None)


def _count(x: Any) -> tuple[int, int, int]:
    """The number of values, of NaN, and of infinite values."""
    import torch

    x = torch.as_tensor(x).detach()
    x = x.float() if x.is_floating_point() and x.dtype.itemsize == 1 else x
    return x.numel(), int(x.isnan().sum()), int(x.isinf().sum())
