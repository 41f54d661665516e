"""Matrix products for few rows: modules that take the place of `nn.Linear` once a model is loaded.

One token a step means one row against every weight, so the time is the reading of the weights. `F.linear` reads them
at less than half of what memory can give (float32, one row, x86), as only one thread does. `speed_up` replaces each
`nn.Linear` by the first module of the wanted kind that can serve it:

| weights | module | one row costs | what is lost |
|---|---|---|---|
| `loaded` | `Split` | as many bytes as before, by all threads | nothing |
| `float16` | `Half` | 2 bytes a weight | nothing of bfloat16 above 6e-5; float32 is rounded to 11 bits |
| `int8` | `Int8Weights` | 1 byte | weights are rounded to 8 bits, activations of few rows to bfloat16 (CPU) |
| `int8-dynamic` | `Int8` | 1 byte, and less work | activations are rounded to 8 bits too (7 without VNNI), row by row |
| `int4` | `Int4` | 0.63 bytes | weights are rounded to 4 bits in groups of 32, activations to bfloat16 |

The rules are fixed and nothing is timed, so that the same machine always takes the same kernels; `fact` names them for
the recipe. With `Half` and `Int8` a row's numbers do not depend on the rows beside it, to the last bit.
This module knows nothing of models but that they have `nn.Linear` in them, and is for inference only.

Try it: ``python benchmarks/text.py --products``
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.errors import UnknownName
from studio.precision import fast_dtype

FEW = 32  # rows up to which torch's int8 kernel is asked; above, reading the weights is not what costs
VERY_FEW = 4  # rows up to which MKL multiplies a part of the matrix faster from the left
PARTS = 32  # a matrix is cut into at most so many parts; 8 to 64 read equally fast on two cores
GROUP = 32  # weights that share a scale in int4
FLOAT16_MOST = 65504.0
_LINEAR = "linear"  # an `nn.Linear` that stayed


class Kernel(nn.Module):
    """What takes the place of an `nn.Linear`: called with (..., in) it gives (..., out) in the dtype of its input.

    Attributes:
        name: for reports and recipes.
        packed_bytes: what it holds outside of parameters and buffers; the host's ledger counts it by this name.
    """

    name: ClassVar[str]
    packed_bytes: int = 0

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weights; the given module is left as it is."""
        super().__init__()

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Why it cannot serve this one; empty if it can."""
        raise NotImplementedError


class Split(Kernel):
    """The weights as they are, multiplied in a batch of parts of the matrix, so that all threads read; MKL is faster at
    very few rows if these stand at the right, and above at the left.

    The parameters stay those of the `nn.Linear` it was made of: tied weights stay tied, and nothing is held twice.
    """

    name: ClassVar[str] = "split"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = _parts(linear.out_features)

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Only what MKL multiplies: other libraries, and 16-bit weights, have other habits."""
        if not (linear.weight.device.type == "cpu" and torch.backends.mkl.is_available()):
            return "the product is not made by MKL on a CPU"
        if linear.weight.dtype != torch.float32:
            return f"the weights are {linear.weight.dtype}, not float32"
        return "" if _parts(linear.out_features) > 1 else f"{linear.out_features} rows cannot be cut into equal parts"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        rows = _rows(x)  # (N, in)
        if not len(rows):
            return F.linear(x, self.weight, self.bias)
        matrix = self.weight.unflatten(0, (self.parts, -1))  # (P, out / P, in)
        if len(rows) > VERY_FEW:
            y = torch.bmm(rows.expand(self.parts, -1, -1), matrix.mT).transpose(0, 1)  # (N, P, out / P)
        else:
            y = torch.bmm(matrix, rows.t().expand(self.parts, -1, -1)).flatten(0, 1).t()  # (N, out)
        y = y.reshape(len(rows), -1).contiguous()  # kernels after it want whole rows
        return _shaped(y if self.bias is None else y.add_(self.bias), x)


class Half(Kernel):
    """Weights in float16, products and sums in float32, by FBGEMM (x86).

    Without AVX-512 it sums in another order where it works on one row, or two, and it cuts rows into threes to sixes as
    far as their number allows. Rows of zeros are added up to a multiple of three there, which costs next to nothing.
    """

    name: ClassVar[str] = "fbgemm-float16"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), bias)
        self.packed_bytes = linear.weight.numel() * 2 + (0 if bias is None else bias.nbytes)
        self.multiple = 1 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 3  # of rows

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Weights must fit into float16."""
        if reason := _no_fbgemm(linear):
            return reason
        most = float(linear.weight.detach().abs().amax())
        return "" if most <= FLOAT16_MOST else f"a weight is as large as {most:g}; float16 holds up to {FLOAT16_MOST:g}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x).float()
        more = -len(rows) % self.multiple
        y = torch.ops.quantized.linear_dynamic_fp16(F.pad(rows, (0, 0, 0, more)) if more else rows, self._packed)
        return _shaped(y[: len(rows)], x)


class Int8(Kernel):
    """Weights in int8, a scale for each output; each row of x in 8 bits with its own scale; exact sums, by FBGEMM.

    FBGEMM's own dynamic form takes one scale for all rows, and then what a request gets depends on its neighbours. So
    rows are divided by their largest number before, and the fixed scale is that of -1 to 1.

    Processors without VNNI add pairs of products in 16 bits, which do not hold those of 8 bits. Rows have 7 there.
    """

    name: ClassVar[str] = "fbgemm-int8"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scales = _scales(weight, 127)
        self._packed = _packed_int8(weight, scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.steps = 63 if _saturates() else 127  # from zero to a row's largest number
        self.packed_bytes = weight.numel() + 12 * len(scales)  # FBGEMM holds scale, zero point and sum of each output

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Needs FBGEMM and torch's quantised tensors, which a later torch may drop."""
        gone = not hasattr(torch, "quantize_per_channel") or not hasattr(torch.ops.quantized, "linear_prepack")
        return _no_fbgemm(linear) or ("this torch has no quantised tensors" if gone else _not_finite(linear))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x).float()
        most = torch.linalg.vector_norm(rows, float("inf"), -1, keepdim=True).clamp_min(1e-30)  # (N, 1)
        y = _product_int8(rows / most, self.steps, self._packed)  # (N, out)
        y = y * most if self.bias is None else torch.addcmul(self.bias, y, most)
        return _shaped(y, x)


@cache
def _saturates() -> bool:
    """Whether FBGEMM loses what 8-bit products add up to on this processor: asked of it, with the largest ones."""
    weight = torch.ones(8, 64)
    sums = _product_int8(torch.ones(1, 64), 127, _packed_int8(weight, _scales(weight, 127)))
    return bool((sums - 64).abs().max() > 0.01)


def _packed_int8(weight: Tensor, scales: Tensor) -> torch.ScriptObject:
    """Weights (out, in) as FBGEMM holds them, with a scale for each output (out,)."""
    with warnings.catch_warnings():  # there is no other way yet to hand int8 weights to FBGEMM
        warnings.filterwarnings("ignore", message=".*quantized tensor creation", category=UserWarning)
        int8 = torch.quantize_per_channel(weight, scales.double(), torch.zeros(len(scales)).long(), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(int8, None)


def _product_int8(rows: Tensor, steps: int, packed: torch.ScriptObject) -> Tensor:
    """Rows (N, in) from -1 to 1, rounded to `steps` on either side of zero, times the weights: float32 (N, out)."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows, 1 / steps, steps + 1, packed)


class Int8Weights(Kernel):
    """Weights in int8, a scale for each output; activations keep their numbers. Runs on CPUs and GPUs."""

    name: ClassVar[str] = "int8-weights"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scales = _scales(weight, 127)
        self.weight: Tensor
        self.scales: Tensor
        self.register_buffer("weight", (weight / scales[:, None]).round().to(torch.int8))  # (out, in)
        self.register_buffer("scales", scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Only what is not finite."""
        return _not_finite(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x. On a GPU `torch.compile` fuses the conversion into the product."""
        rows = _rows(x)
        if x.device.type != "cpu":
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scales.to(x.dtype)
        elif 0 < len(rows) <= FEW and not rows.shape[1] % 16:
            # torch's kernel is quick in bfloat16 alone, and reads beyond the end of rows that are no multiple of 16.
            y = torch._weight_int8pack_mm(
                rows.bfloat16(), self.weight, torch.ones_like(self.scales, dtype=torch.bfloat16)
            )
            y = y * self.scales
        else:
            short = getattr(torch, fast_dtype("cpu"))
            y = F.linear(rows.to(short), self.weight.to(short)) * self.scales
        y = y if self.bias is None else y + self.bias
        return _shaped(y, x)


class Int4(Kernel):
    """Weights in 4 bits, with a scale and an offset for each `GROUP` inputs of an output, by torch's own kernels.

    Activations are rounded to bfloat16: the kernel of the CPU takes float32 too, at a thirtieth of the speed. The one
    for CUDA has not been run.
    """

    name: ClassVar[str] = "int4-weights"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.outputs = linear.out_features
        self.on_cuda = linear.weight.device.type == "cuda"
        weight = F.pad(linear.weight.detach().float(), (0, 0, 0, -self.outputs % 16))
        groups = weight.unflatten(1, (-1, GROUP))  # (out, in / GROUP, GROUP)
        least = groups.amin(-1)
        scales = ((groups.amax(-1) - least) / 15).clamp_min(1e-9)  # (out, in / GROUP)
        integers = ((groups - least[..., None]) / scales[..., None]).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.weight: Tensor
        self.scales: Tensor
        self.register_buffer("weight", _pack_int4(integers, self.on_cuda))
        both = torch.stack((scales, least + 8 * scales), -1).transpose(
            0, 1
        )  # a weight is (integer - 8) * scale + offset
        self.register_buffer("scales", both.contiguous().bfloat16())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Inputs come in whole groups."""
        if linear.in_features % GROUP:
            return f"{linear.in_features} inputs are not a multiple of {GROUP}"
        return _not_finite(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x).to(self.scales.dtype)
        multiply = torch.ops.aten._weight_int4pack_mm if self.on_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
        y = multiply(rows, self.weight, GROUP, self.scales)[:, : self.outputs]
        y = y if self.bias is None else y + self.bias
        return _shaped(y, x)


KINDS: dict[str, tuple[type[Kernel], ...]] = {
    "loaded": (Split,),
    "float16": (Half, Split),
    "int8": (Int8Weights,),
    "int8-dynamic": (Int8, Int8Weights),
    "int4": (Int4, Int8Weights),
}


@dataclass(frozen=True)
class Packed:
    """What `speed_up` did.

    Attributes:
        kernels: for each `nn.Linear` by its path the kernel that took its place; ``linear`` where it stayed.
        reasons: for each path and kernel that was asked before, why it refused.
        before, after: bytes of all the model's weights; a tied embedding stays beside a packed head, and counts.
    """

    kernels: dict[str, str]
    reasons: dict[str, dict[str, str]]
    before: int
    after: int


@dataclass(frozen=True)
class Pack:
    """`speed_up` with a kind of `weights`, as `studio.module` takes it."""

    weights: str

    def __call__(self, model: nn.Module) -> Packed:
        """Replace every `nn.Linear`. Raises UnknownName."""
        return speed_up(model, self.weights)


def fact(model: nn.Module) -> str:
    """For the recipe: each kernel that serves the model, with the count of its modules."""
    names = [_LINEAR if type(each) is nn.Linear else each.name for each in model.modules()
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
    for path, parent, name, linear in list(_linears(model)):
        kernels[path] = _LINEAR
        for kernel in KINDS[weights]:
            if reason := kernel.refuses(linear):
                reasons.setdefault(path, {})[kernel.name] = reason
                continue
            setattr(parent, name, kernel(linear))
            kernels[path] = kernel.name
            break
    return Packed(kernels, reasons, before, size(model))


def size(model: nn.Module) -> int:
    """Bytes of a model's weights: parameters and buffers, what is shared once, and what is packed outside of them."""
    held = {each.data_ptr(): each.nbytes for each in (*model.parameters(), *model.buffers())}
    return sum(held.values()) + sum(getattr(each, "packed_bytes", 0) for each in model.modules())


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield f"{path}.{name}".lstrip("."), parent, name, child


def _rows(x: Tensor) -> Tensor:
    """(..., in) as whole rows (N, in)."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    """Answers (N, out) in the shape and dtype that belong to x (..., in)."""
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def _parts(outputs: int) -> int:
    return max(parts for parts in range(1, PARTS + 1) if outputs % parts == 0)


def _scales(weight: Tensor, most: int) -> Tensor:
    """(out,) so that each output's largest weight becomes `most`."""
    return weight.abs().amax(1).clamp_min(1e-30) / most


def _no_fbgemm(linear: nn.Linear) -> str:
    if linear.weight.device.type != "cpu":
        return "FBGEMM runs on a CPU"
    return "" if "fbgemm" in torch.backends.quantized.supported_engines else "this torch is built without FBGEMM"


def _not_finite(linear: nn.Linear) -> str:
    return "" if bool(linear.weight.detach().isfinite().all()) else "a weight is not finite"


def _pack_int4(integers: Tensor, cuda: bool) -> Tensor:
    """The layout that torch's kernels read; on CUDA as many tiles of 16 inputs together as fit (2, 4 or 8)."""
    if not cuda:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    tiles = next(tiles for tiles in (8, 4, 2) if integers.shape[1] % (16 * tiles) == 0)
    pairs = (integers[:, ::2] << 4 | integers[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
