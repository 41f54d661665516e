"""Quantization of a loaded model's `nn.Linear` layers, and fast matrix products for few rows.

Decoding multiplies one row by every weight, so it is bound by memory bandwidth. `F.linear` reaches less than half of
that bandwidth (float32, one row, x86), as only one thread reads. `quantize` replaces each `nn.Linear` by the first
module of the requested kind that supports it:

| weights | module | bytes per weight and row | rounding |
|---|---|---|---|
| `loaded` | `Split` | as before, read by all threads | none |
| `float16` | `Half` | 2 bytes | none of bfloat16 above 6e-5; float32 is rounded to 11 bits |
| on a GPU | `Short` | 2 bytes | float32 is rounded to bfloat16's 8 bits, or float16's 11 (older cards) |
| `int8` | `Int8Weights` | 1 byte | weights are rounded to 8 bits, activations of few rows to bfloat16 (CPU) |
| `int8-dynamic` | `Int8` | 1 byte, and less work | activations are rounded to 8 bits too (7 without VNNI), row by row |
| `int4` | `Int4` | 0.63 bytes | weights are rounded to 4 bits in groups of 32, activations to bfloat16 |

The choice is not timed, so the same machine always uses the same kernels; `kernel_summary` names them for the recipe.
With `Half` and `Int8` the result of a row does not depend on the other rows, to the last bit. For inference only.

Try it: ``python benchmarks/text.py --products``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from studio.errors import UnknownName
from studio_gpt.kernels import Half, Int4, Int8, Int8Weights, Kernel, Short, Split

_LINEAR = "linear"  # an `nn.Linear` that was not replaced

KINDS: dict[str, tuple[type[Kernel], ...]] = {
    "loaded": (Split,),
    "float16": (Half, Short, Split),
    "int8": (Int8Weights,),
    "int8-dynamic": (Int8, Int8Weights),
    "int4": (Int4, Int8Weights),
}
BITS = {"float16": 16, "int8": 8, "int8-dynamic": 8, "int4": 4}  # of a weight, at most


@dataclass(frozen=True)
class QuantizationReport:
    """The result of `quantize`.

    Attributes:
        kernels: for the path of each `nn.Linear` the kernel that replaced it; ``linear`` where none did.
        reasons: for each path why the kernels before that one do not support it.
        before, after: bytes of all weights of the model; a tied embedding stays beside a packed head, and counts.
        missed: a notice if some weights take more bits than requested, with the reason; else empty.
    """

    kernels: dict[str, str]
    reasons: dict[str, dict[str, str]]
    before: int
    after: int
    missed: str = ""


@dataclass(frozen=True)
class Quantizer:
    """`quantize` with a kind of `weights`, in the form that `studio.module` takes."""

    weights: str

    def __call__(self, model: nn.Module) -> QuantizationReport:
        """Replace every `nn.Linear`, and set the report as `model.packed`. Raises UnknownName."""
        model.packed = report = quantize(model, self.weights)  # type: ignore[assignment]
        return report


def kernel_summary(model: nn.Module) -> str:
    """For the recipe: each kernel that the model uses, with the number of its modules."""
    names = [each.name if isinstance(each, Kernel) else _plain(each) for each in model.modules()
             if isinstance(each, nn.Linear | Kernel)]  # fmt: skip
    return ", ".join(f"{name} x{count}" for name, count in sorted(Counter(names).items()))


def quantize(model: nn.Module, weights: str = "loaded") -> QuantizationReport:
    """Replace every `nn.Linear` of a loaded model by a quantized or faster module, in place and one by one.

    Args:
        model: on its device, in its dtype; afterwards it is for inference only.
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
    return QuantizationReport(kernels, reasons, before, size(model), _missed(weights, wide, kernels, reasons))


def _missed(weights: str, wide: list[str], kernels: dict[str, str], reasons: dict[str, dict[str, str]]) -> str:
    if not wide:
        return ""
    names = [each.name for each in KINDS[weights] if each.bits <= BITS[weights]]
    said = [reason for name in names if (reason := reasons[wide[0]].get(name))]
    held = ", ".join(sorted({kernels[path] for path in wide}))
    return f"{len(wide)} of {len(kernels)} matrices are in {held}, not `{weights}`: {said[-1]}"


def _plain(linear: nn.Linear) -> str:
    """The name of an `nn.Linear` that was not replaced, with its dtype unless that is float32."""
    dtype = str(linear.weight.dtype).removeprefix("torch.")
    return _LINEAR if dtype == "float32" else f"{_LINEAR}-{dtype}"


def size(model: nn.Module) -> int:
    """Bytes of a model's weights: parameters and buffers (tied ones once), and packed weights outside of them."""
    held = {each.data_ptr(): each.nbytes for each in (*model.parameters(), *model.buffers())}
    return sum(held.values()) + sum(getattr(each, "packed_bytes", 0) for each in model.modules())


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield f"{path}.{name}".lstrip("."), parent, name, child
