"""Quantized and fast replacements of `nn.Linear`, each with its weight format and its supported devices.

See the table in `linear.py`. Each gives the reason why it does not support a module;
`quantized_linear.py` selects one.

Try it: ``pytest tests/plugins/studio_gpt/test_quantized_linear.py``
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.devices.precision import fast_dtype

FEW = 32  # rows up to which torch's int8 kernel is used; above, the product is not memory-bound
VERY_FEW = 4  # rows up to which MKL is faster with the matrix on the left
PARTS = 32  # maximum number of parts of a matrix; 8 to 64 are equally fast on two cores
GROUP = 32  # weights that share a scale in int4
FLOAT16_MOST = 65504.0
INT4_CAPABILITY = (8, 0)  # of a CUDA card, for torch's int4 kernel
_KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}  # of torch's dispatcher


class Kernel(nn.Module):
    """A replacement of an `nn.Linear`: (..., in) to (..., out), in the dtype of its input.

    Attributes:
        name: for reports and recipes.
        bits: per weight, at most.
        packed_bytes: memory outside of parameters and buffers; the host's memory ledger reads this name.
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    packed_bytes: int = 0

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weights; the given module is not changed."""
        super().__init__()

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """The reason why it does not support this module; empty if it does."""
        raise NotImplementedError


class Split(Kernel):
    """Unchanged weights, multiplied as a batch of parts of the matrix, so that all threads read memory. With very few
    rows MKL is faster with the matrix on the left, with more on the right.

    It shares the parameters of the `nn.Linear`: tied weights stay tied, and no memory is copied.
    """

    name: ClassVar[str] = "split"
    bits: ClassVar[int] = 32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = _parts(linear.out_features)

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Only float32 products by MKL are supported."""
        if not (linear.weight.device.type == "cpu" and torch.backends.mkl.is_available()):
            return "the product does not run by MKL on a CPU"
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
        y = y.reshape(len(rows), -1).contiguous()  # later kernels need contiguous rows
        return _shaped(y if self.bias is None else y.add_(self.bias), x)


class Half(Kernel):
    """Weights in float16, products and sums in float32, by FBGEMM (x86).

    Without AVX-512 the order of summation differs between groups of one or two rows and groups of three to six. So rows
    are padded with zeros to a multiple of three there, which costs little.
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
        return "" if most <= FLOAT16_MOST else f"a weight is {most:g}; the maximum of float16 is {FLOAT16_MOST:g}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x).float()
        more = -len(rows) % self.multiple
        y = torch.ops.quantized.linear_dynamic_fp16(F.pad(rows, (0, 0, 0, more)) if more else rows, self._packed)
        return _shaped(y[: len(rows)], x)


class Short(Kernel):
    """Weights in the fastest 16-bit dtype of a GPU. In float16 rows are first divided by their largest number, since
    sums beyond 65504 overflow.
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
        """Rejects 16-bit weights, devices without a faster 16-bit dtype, and weights that overflow float16."""
        device = linear.weight.device
        if device.type == "cpu":
            return "it is only for GPUs"
        if linear.weight.dtype.itemsize <= 2:
            return f"the weights are {linear.weight.dtype} already"
        short = fast_dtype(str(device))
        if short == "float32":
            return f"`{device}` has no dtype that is faster than float32"
        most = float(linear.weight.detach().abs().sum(1).amax())
        if short == "float16" and most > FLOAT16_MOST:
            return f"the weights of an output sum to {most:g}; the maximum of float16 is {FLOAT16_MOST:g}"
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
    """Dynamic int8 quantization by FBGEMM: int8 weights with a scale per output, 8-bit activations with a scale per
    row.

    FBGEMM's own dynamic form has one scale for all rows, so a request's result would depend on its batch. So rows are
    divided by their largest number first, and the fixed scale is that of -1 to 1.

    CPUs without VNNI add pairs of products in 16 bits, where 8-bit products overflow; activations have 7 bits there.
    """

    name: ClassVar[str] = "fbgemm-int8"
    bits: ClassVar[int] = 8

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scales = _scales(weight, 127)
        self._packed = _packed_int8(weight, scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.steps = 63 if _saturates() else 127  # quantization steps from zero to a row's largest number
        self.packed_bytes = weight.numel() + 12 * len(scales)  # FBGEMM holds scale, zero point and sum of each output

    @classmethod
    def refuses(cls, linear: nn.Linear) -> str:
        """Needs FBGEMM and torch's quantized tensors, which a later torch may remove."""
        gone = not hasattr(torch, "quantize_per_channel") or not hasattr(torch.ops.quantized, "linear_prepack")
        return _no_fbgemm(linear) or ("this torch has no quantized tensors" if gone else _not_finite(linear))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the dtype of x."""
        rows = _rows(x).float()
        most = torch.linalg.vector_norm(rows, float("inf"), -1, keepdim=True).clamp_min(1e-30)  # (N, 1)
        y = _product_int8(rows / most, self.steps, self._packed)  # (N, out)
        y = y * most if self.bias is None else torch.addcmul(self.bias, y, most)
        return _shaped(y, x)


@cache
def _saturates() -> bool:
    """Whether FBGEMM saturates on this CPU: tested with the largest 8-bit products."""
    weight = torch.ones(8, 64)
    sums = _product_int8(torch.ones(1, 64), 127, _packed_int8(weight, _scales(weight, 127)))
    return bool((sums - 64).abs().max() > 0.01)


def _packed_int8(weight: Tensor, scales: Tensor) -> torch.ScriptObject:
    """Weights (out, in) packed for FBGEMM, with a scale for each output (out,)."""
    with warnings.catch_warnings():  # FBGEMM has no other interface for int8 weights yet
        warnings.filterwarnings("ignore", message=".*quantized tensor creation", category=UserWarning)
        int8 = torch.quantize_per_channel(weight, scales.double(), torch.zeros(len(scales)).long(), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(int8, None)


def _product_int8(rows: Tensor, steps: int, packed: torch.ScriptObject) -> Tensor:
    """Rows (N, in) from -1 to 1, rounded to `steps` on either side of zero, times the weights: float32 (N, out)."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows, 1 / steps, steps + 1, packed)


class Int8Weights(Kernel):
    """Weight-only int8 quantization, with a scale for each output. For CPUs and GPUs."""

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
        """Rejects devices without a kernel in torch, and weights that are NaN or infinite."""
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
            # torch's kernel is fast only in bfloat16, and reads beyond rows whose length is not a multiple of 16.
            y = torch._weight_int8pack_mm(
                rows.bfloat16(), self.weight, torch.ones_like(self.scales, dtype=torch.bfloat16)
            )
            y = y * self.scales
        elif on_cpu:
            short = getattr(torch, fast_dtype("cpu"))
            y = F.linear(rows.to(short), self.weight.to(short)) * self.scales
        else:  # with many rows it pays to dequantize the weights
            y = F.linear(rows, (self.weight * self.scales[:, None]).to(x.dtype))
        y = y if self.bias is None else y + self.bias
        return _shaped(y, x)


class Int4(Kernel):
    """Weight-only int4 quantization, with a scale and an offset per group of `GROUP` inputs, by torch's kernels.

    Activations are rounded to bfloat16: the CPU kernel is 30 times slower in float32. The CUDA kernel has not been run.
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
        """Rejects inputs that are not a multiple of `GROUP`, and devices without the kernel."""
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
    """(..., in) as contiguous rows (N, in)."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    """Results (N, out) in the shape and dtype of x (..., in)."""
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
    return "" if bool(linear.weight.detach().isfinite().all()) else "a weight is NaN or infinite"


def _pack_int4(integers: Tensor, cuda: bool) -> Tensor:
    """The packed layout of torch's kernels; on CUDA with the most tiles of 16 inputs that fit (2, 4 or 8)."""
    if not cuda:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    tiles = next(tiles for tiles in (8, 4, 2) if integers.shape[1] % (16 * tiles) == 0)
    pairs = (integers[:, ::2] << 4 | integers[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
