"""Matrix products for few rows: modules that take the place of `nn.Linear` once a model is loaded.

One token a step means one row against every weight, so the time is the reading of the weights. `F.linear` reads them
at less than half of what memory can give (float32, one row, x86), as only one thread does. `speed_up` replaces each
`nn.Linear` by the first module of the wanted kind that can serve it:

| weights | module | one row costs | what is lost |
|---|---|---|---|
| `loaded` | `Split` | as many bytes as before, by all threads | nothing |
| `float16` | `Half` | 2 bytes a weight | nothing of bfloat16 above 6e-5; float32 is rounded to 11 bits |
| on a GPU | `Short` | 2 bytes a weight | float32 is rounded to bfloat16's 8 bits, or float16's 11 (older cards) |
| `int8` | `Int8Weights` | 1 byte | weights are rounded to 8 bits, activations of few rows to bfloat16 (CPU) |
| `int8-dynamic` | `Int8` | 1 byte, and less work | activations are rounded to 8 bits too (7 without VNNI), row by row |
| `int4` | `Int4` | 0.63 bytes | weights are rounded to 4 bits in groups of 32, activations to bfloat16 |

The rules are fixed and nothing is timed, so that the same machine always takes the same kernels; `fact` names them for
the recipe. With `Half` and `Int8` a row's numbers do not depend on the rows beside it, to the last bit.
This module knows nothing of models but that they have `nn.Linear` in them, and is for inference only.

Try it: ``python benchmarks/text.py --products``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from studio.errors import UnknownName
from studio_gpt.kernels import Half, Int4, Int8, Int8Weights, Kernel, Short, Split

_LINEAR = "linear"  # an `nn.Linear` that stayed

KINDS: dict[str, tuple[type[Kernel], ...]] = {
    "loaded": (Split,),
    "float16": (Half, Short, Split),
    "int8": (Int8Weights,),
    "int8-dynamic": (Int8, Int8Weights),
    "int4": (Int4, Int8Weights),
}
BITS = {"float16": 16, "int8": 8, "int8-dynamic": 8, "int4": 4}  # that a kind promises


@dataclass(frozen=True)
class Packed:
    """What `speed_up` did.

    Attributes:
        kernels: for each `nn.Linear` by its path the kernel that took its place; ``linear`` where it stayed.
        reasons: for each path and kernel that was asked before, why it refused.
        before, after: bytes of all the model's weights; a tied embedding stays beside a packed head, and counts.
        missed: where weights take more bits than the kind promises, how many of them and why; empty if none do.
    """

    kernels: dict[str, str]
    reasons: dict[str, dict[str, str]]
    before: int
    after: int
    missed: str = ""


@dataclass(frozen=True)
class Pack:
    """`speed_up` with a kind of `weights`, as `studio.module` takes it."""

    weights: str

    def __call__(self, model: nn.Module) -> Packed:
        """Replace every `nn.Linear`, and leave the report at the model as `packed`. Raises UnknownName."""
        model.packed = report = speed_up(model, self.weights)  # type: ignore[assignment]
        return report


def fact(model: nn.Module) -> str:
    """For the recipe: each kernel that serves the model, with the count of its modules."""
    names = [each.name if isinstance(each, Kernel) else _plain(each) for each in model.modules()
             if isinstance(each, nn.Linear | Kernel)]  # fmt: skip
    return ", ".join(f"{name} x{count}" for name, count in sorted(Counter(names).items()))


def speed_up(model: nn.Module, weights: str = "loaded") -> Packed:
    """Replace every `nn.Linear` inside a loaded model by a faster module, in place and one by one.

    Args:
        model: on its device, in its dtype; it is for inference from here on.
        weights: a key of `KINDS`, see the table above.

    Raises UnknownName for another kind of weights.
    """
    if weights not in KINDS:
        raise UnknownName("kind of weights", weights, tuple(KINDS))
    before = size(model)
    kernels: dict[str, str] = {}
    reasons: dict[str, dict[str, str]] = {}
    wide: list[str] = []
    for path, parent, name, linear in list(_linears(model)):
        kernels[path], bits = _plain(linear), linear.weight.dtype.itemsize * 8
        for kernel in KINDS[weights]:
            if reason := kernel.refuses(linear):
                reasons.setdefault(path, {})[kernel.name] = reason
                continue
            setattr(parent, name, kernel(linear))
            kernels[path], bits = kernel.name, kernel.bits
            break
        if bits > BITS.get(weights, bits):
            wide.append(path)
    return Packed(kernels, reasons, before, size(model), _missed(weights, wide, kernels, reasons))


def _missed(weights: str, wide: list[str], kernels: dict[str, str], reasons: dict[str, dict[str, str]]) -> str:
    if not wide:
        return ""
    names = [each.name for each in KINDS[weights] if each.bits <= BITS[weights]]
    said = [reason for name in names if (reason := reasons[wide[0]].get(name))]
    held = ", ".join(sorted({kernels[path] for path in wide}))
    return f"{len(wide)} of {len(kernels)} matrices are not held as `{weights}` but as {held}: {said[-1]}"


def _plain(linear: nn.Linear) -> str:
    """An `nn.Linear` that stayed, and its dtype unless that is float32."""
    dtype = str(linear.weight.dtype).removeprefix("torch.")
    return _LINEAR if dtype == "float32" else f"{_LINEAR}-{dtype}"


def size(model: nn.Module) -> int:
    """Bytes of a model's weights: parameters and buffers, what is shared once, and what is packed outside of them."""
    held = {each.data_ptr(): each.nbytes for each in (*model.parameters(), *model.buffers())}
    return sum(held.values()) + sum(getattr(each, "packed_bytes", 0) for each in model.modules())


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield f"{path}.{name}".lstrip("."), parent, name, child
