"""The kernels that take the place of `nn.Linear`: what each holds of the weights, and which devices it runs on.

See the table in `linear.py`. Each says why it cannot serve a module; which one does is not decided here.

Try it: ``pytest tests/plugins/studio_gpt/test_linear.py``
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.devices.precision import fast_dtype

FEW = 32  # rows up to which torch's int8 kernel is asked; above, reading the weights is not what costs
VERY_FEW = 4  # rows up to which MKL multiplies a part of the matrix faster from the left
PARTS = 32  # a matrix is cut into at most so many parts; 8 to 64 read equally fast on two cores
GROUP = 32  # weights that share a scale in int4
FLOAT16_MOST = 65504.0
INT4_CAPABILITY = (8, 0)  # of a CUDA card, for torch's int4 kernel
_KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}  # of torch's dispatcher


class Kernel(nn.Module):
    """What takes the place of an `nn.Linear`: called with (..., in) it gives (..., out) in the dtype of its input.

    Attributes:
        name: for reports and recipes.
        bits: of a weight, at the most.
        packed_bytes: what it holds outside of parameters and buffers; the host's ledger counts it by this name.
    """

    name: ClassVar[str]
    bits: ClassVar[int]
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
    bits: ClassVar[int] = 32

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
    bits: ClassVar[int] = 16

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


class Short(Kernel):
    """Weights in the short dtype that a GPU multiplies fastest. In float16 rows are divided by their largest number
    before, since sums beyond 65504 are infinite there.
    """

    name: ClassVar[str] = "short"
    bits: ClassVar[int] = 16

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        short = getattr(torch, fast_dtype(str(linear.weight.device)))
        self.weight = nn.Parameter(linear.weight.detach().to(short), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Weights that are short already, devices that are slower with them, and what float16 does not hold."""
        device = linear.weight.device
        if device.type == "cpu":
            return "it is for GPUs"
        if linear.weight.dtype.itemsize <= 2:
            return f"the weights are {linear.weight.dtype} already"
        short = fast_dtype(str(device))
        if short == "float32":
            return f"`{device}` multiplies nothing faster than float32"
        most = float(linear.weight.detach().abs().sum(1).amax())
        if short == "float16" and most > FLOAT16_MOST:
            return f"the weights of an output come to {most:g}; float16 holds up to {FLOAT16_MOST:g}"
        return ""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x)
        if self.weight.dtype == torch.float16:
            rows = rows.float()
            most = torch.linalg.vector_norm(rows, float("inf"), -1, keepdim=True).clamp_min(1e-30)  # (N, 1)
            y = F.linear((rows / most).half(), self.weight).float() * most
        else:
            y = F.linear(rows.to(self.weight.dtype), self.weight).float()
        return _shaped(y if self.bias is None else y + self.bias, x)


class Int8(Kernel):
    """Weights in int8, a scale for each output; each row of x in 8 bits with its own scale; exact sums, by FBGEMM.

    FBGEMM's own dynamic form takes one scale for all rows, and then what a request gets depends on its neighbours. So
    rows are divided by their largest number before, and the fixed scale is that of -1 to 1.

    Processors without VNNI add pairs of products in 16 bits, which do not hold those of 8 bits. Rows have 7 there.
    """

    name: ClassVar[str] = "fbgemm-int8"
    bits: ClassVar[int] = 8

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
    bits: ClassVar[int] = 8

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
        """Devices that torch has no such kernel for, and what is not finite."""
        kind = linear.weight.device.type
        key = _KEYS.get(kind)
        if key and not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", key):
            return f"this torch has no int8 kernel for {kind}"
        return _not_finite(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x)
        on_cpu, few = x.device.type == "cpu", 0 < len(rows) <= FEW
        if few and not on_cpu:  # in float32: scales are too small for float16, and sums without them too large
            y = torch._weight_int8pack_mm(rows.float(), self.weight, self.scales)
        elif few and not rows.shape[1] % 16:
            # torch's kernel is quick in bfloat16 alone, and reads beyond the end of rows that are no multiple of 16.
            y = torch._weight_int8pack_mm(
                rows.bfloat16(), self.weight, torch.ones_like(self.scales, dtype=torch.bfloat16)
            )
            y = y * self.scales
        elif on_cpu:
            short = getattr(torch, fast_dtype("cpu"))
            y = F.linear(rows.to(short), self.weight.to(short)) * self.scales
        else:  # many rows earn weights that are written out
            y = F.linear(rows, (self.weight * self.scales[:, None]).to(x.dtype))
        y = y if self.bias is None else y + self.bias
        return _shaped(y, x)


class Int4(Kernel):
    """Weights in 4 bits, with a scale and an offset for each `GROUP` inputs of an output, by torch's own kernels.

    Activations are rounded to bfloat16: the kernel of the CPU takes float32 too, at a thirtieth of the speed. The one
    for CUDA has not been run.
    """

    name: ClassVar[str] = "int4-weights"
    bits: ClassVar[int] = 4

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
        """Inputs come in whole groups, and only CPUs and CUDA from a compute capability on have the kernel."""
        device = linear.weight.device
        if device.type not in ("cpu", "cuda"):
            return f"torch has no int4 kernel with this layout for {device.type}"
        if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < INT4_CAPABILITY:
            return "int4 needs compute capability {}.{}; the card has {}.{}".format(*INT4_CAPABILITY, *found)
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
