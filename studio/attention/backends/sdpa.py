"""`sdpa-flash`, `sdpa-efficient`, `sdpa-cudnn`, `sdpa-math`: the kernels behind torch's scaled_dot_product_attention.

They are called by their own operators, since torch's switch between them (`torch.nn.attention.sdpa_kernel`) is global
to the process, so two threads could not use different ones. Whether a device has a kernel is tried once, on a small
problem. The limits of the CUDA kernels (dtypes, head sizes, strides, masks) are copied from torch's own checks: their
operators raise where torch's switch would choose another. Not run on a GPU yet:
`benchmarks/gpu.py` compares these limits with one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from studio.attention.backend import Backend
from studio.attention.backends.masks import materialized, too_large_a_mask
from studio.attention.problem import Problem

_ops = torch.ops.aten
_FEWEST_KEYS = 16  # float32 lanes of the widest vector register
_SHORT = (torch.float16, torch.bfloat16)  # the dtypes of the CUDA flash kernels
_WIDEST_HEAD = 256  # head_dim of the CUDA flash kernels; `efficient` has no limit
_ALIGNED = 8  # elements: 16 bytes in the 16-bit dtypes


def flash_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """torch's flash kernel for the CPU, on (B, H, T, D); supports grouped-query attention.

    With fewer keys than a vector register has lanes, and no mask, it returns zeros for a row of NaN scores; with a mask
    it does not, so it gets one. It ignores the stride of head_dim, so strided inputs are copied. It reads grouped keys
    once per query head; where each head has one query, the heads of a group become its queries, which are read once.
    """
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    if q.shape[2] == 1 and q.shape[1] != k.shape[1] and (mask is None or mask.shape[1] == 1):
        grouped: Tensor = q.flatten(1, 2).unflatten(1, (k.shape[1], -1))  # type: ignore[no-untyped-call]
        return flash_cpu(grouped, k, v, mask, False, scale).flatten(1, 2)[:, :, None]
    if mask is None and k.shape[2] < _FEWEST_KEYS:
        mask, causal = _small_mask(q.shape[2] if causal else 1, k.shape[2], q, causal), False
    # torch's own binding: a call through `torch.ops` takes 15 us more
    found = torch._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    return found[0]


def _small_mask(queries: int, keys: int, like: Tensor, causal: bool) -> Tensor:
    """An all-zero or causal mask: (1, 1, queries, keys)."""
    mask = like.new_zeros(1, 1, queries, keys)
    return mask.masked_fill_(mask.new_ones(queries, keys, dtype=torch.bool).triu_(1), -torch.inf) if causal else mask


def flash_cuda(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """FlashAttention for CUDA; no mask; grouped-query attention. "Causal" counts from the bottom right."""
    assert mask is None
    q, k, v = neighbours(q, k, v)
    return cast(Tensor, _ops._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[0])


def efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """The memory-efficient kernel for CUDA; its "causal" counts from the top left."""
    q, k, v = neighbours(q, k, v)
    if mask is not None:
        mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    grad = torch.is_grad_enabled()
    found = _ops._scaled_dot_product_efficient_attention(q, *_wide(q, k, v), mask, grad, 0.0, causal, scale=scale)
    return cast(Tensor, found[0])


def cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """cuDNN's kernel for CUDA, without a mask."""
    assert mask is None
    q, k, v = neighbours(q, k, v)
    grad = torch.is_grad_enabled()
    found = _ops._scaled_dot_product_cudnn_attention(q, k, v, None, grad, 0.0, causal, False, scale=scale)
    return cast(Tensor, found[0])


def math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """torch's unfused formula, which materializes all scores."""
    grouped = q.shape[1] != k.shape[1]
    found = _ops._scaled_dot_product_attention_math(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)
    return cast(Tensor, found[0])


FLASH: dict[str, Callable[..., Tensor]] = {"cpu": flash_cpu, "cuda": flash_cuda}  # by the type of the device


def computes_as_a_cpu(device: torch.device) -> bool:
    """Whether the device uses the CPU's flash kernel: the CPU, and the fake GPU of `studio.testing`."""
    return FLASH.get(device.type) is flash_cpu


def neighbours(*given: Tensor) -> tuple[Tensor, ...]:
    """The tensors, copied where needed, so that head_dim is contiguous and rows are aligned to 16 bytes."""
    copied = torch.contiguous_format  # `contiguous` would not copy a single row
    return tuple(each if _is_aligned(each) else each.clone(memory_format=copied) for each in given)


def _is_aligned(x: Tensor) -> bool:
    steps = (*x.stride()[:-1], x.storage_offset())
    return x.stride(-1) == 1 and not any(step % _ALIGNED for step in steps)


def _wide(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values repeated to the number of query heads: (B, H, T, D)."""
    each = q.shape[1] // k.shape[1]
    return (k, v) if each == 1 else (k.repeat_interleave(each, 1), v.repeat_interleave(each, 1))


class _Sdpa(Backend):
    """The base of the four.

    `masks`: whether the kernel takes a mask tensor. On CUDA `corner` is where "causal" counts from: ``top left`` aligns
        query 0 with key 0, ``bottom right`` the last query with the last key; ``square`` is unknown, so that queries
        and keys must match in number. `flashes`: whether the CUDA kernel has the limits of FlashAttention.
    """

    masks: ClassVar[bool] = True
    corner: ClassVar[str] = "top left"
    flashes: ClassVar[bool] = False

    def kernel(self, device: torch.device) -> Callable[..., Tensor] | None:
        """The function for a device, or None if torch has none."""
        raise NotImplementedError

    def refuses(self, problem: Problem) -> list[str]:
        """Devices without the kernel, unsupported head sizes, and biases that need a large mask."""
        kernel = self.kernel(problem.device)
        if kernel is None:
            return [f"torch has no such kernel for {_device(problem.device)}"]
        reasons = [fault] if (fault := _tried(kernel, problem.dtype, problem.device)) else []
        if kernel is not math:
            if problem.head_dim != problem.value_dim:
                reasons.append(f"value head_dim {problem.value_dim} != key head_dim {problem.head_dim}")
            reasons += self._cuda_limits(problem) if problem.device.type == "cuda" else []
        if problem.open or self._causal(problem):
            return reasons
        if not self.masks:
            return [*reasons, f"it takes no mask, which {_kinds(problem)} needs"]
        if kernel is not math and _bias_wants_grad(problem):
            reasons.append("it has no gradient for the bias's tensor")
        if kernel is efficient and problem.keys % 8:
            reasons.append(f"with a mask the number of keys must be a multiple of 8, not {problem.keys}")
        return reasons + too_large_a_mask(problem)

    def _cuda_limits(self, problem: Problem) -> list[str]:
        """What the kernel's own checks on CUDA reject (torch's sdp_utils)."""
        reasons = []
        if self.flashes and problem.dtype not in _SHORT:
            reasons.append(f"dtype is {problem.dtype_name}; on a GPU it needs float16 or bfloat16")
        if problem.head_dim % 8:
            reasons.append(f"head_dim is {problem.head_dim}; it must be a multiple of 8")
        if self.flashes and problem.head_dim > _WIDEST_HEAD:
            reasons.append(f"head_dim is {problem.head_dim}; on a GPU it must be at most {_WIDEST_HEAD}")
        if not self.masks and problem.plain_causal and not problem.open and not self._causal(problem):
            reasons.append(
                f"{problem.queries} queries, {problem.keys} keys: its causal mask "
                f"{'counts from the bottom right' if self.corner == 'bottom right' else 'needs equal numbers'}"
            )
        return reasons

    def _causal(self, problem: Problem) -> bool:
        """Whether the bias equals this kernel's `is_causal`."""
        if problem.device.type != "cuda" or self.corner == "top left":
            return problem.plain_causal
        if problem.queries == problem.keys or self.corner == "square":
            return problem.plain_causal and problem.queries == problem.keys
        return problem.corner_causal

    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See Backend."""
        kernel = self.kernel(problem.device)
        assert kernel is not None
        causal = not problem.open and self._causal(problem)
        mask = None if problem.open or causal else materialized(problem)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (B, H, T, D)
        return kernel(q, k, v, mask, causal, scale).transpose(1, 2)


class Flash(_Sdpa):
    """Online softmax in one kernel: the fastest without a mask, on a CPU and on a GPU."""

    name = "sdpa-flash"
    corner = "bottom right"
    flashes = True

    def kernel(self, device: torch.device) -> Callable[..., Tensor] | None:
        """The flash kernel of the device."""
        return FLASH.get(device.type)

    def refuses(self, problem: Problem) -> list[str]:
        """On a GPU also all masks."""
        reasons = super().refuses(problem)
        if problem.device.type == "cuda" and not (problem.open or self._causal(problem)):
            reasons.append(f"on a GPU it takes no mask, which {_kinds(problem)} needs")
        return reasons


class Efficient(_Sdpa):
    """The memory-efficient kernel for CUDA: online softmax, with masks."""

    name = "sdpa-efficient"

    def kernel(self, device: torch.device) -> Callable[..., Tensor] | None:
        """CUDA only."""
        return efficient if device.type == "cuda" else None


class Cudnn(_Sdpa):
    """cuDNN's kernel for CUDA."""

    name = "sdpa-cudnn"
    corner = "square"  # for other shapes the alignment is unknown
    masks = False
    flashes = True

    def kernel(self, device: torch.device) -> Callable[..., Tensor] | None:
        """CUDA only."""
        return cudnn if device.type == "cuda" else None


class Math(_Sdpa):
    """torch's unfused formula, for every device."""

    name = "sdpa-math"

    def kernel(self, device: torch.device) -> Callable[..., Tensor] | None:
        """Any device."""
        return math

    def refuses(self, problem: Problem) -> list[str]:
        """Also scores over 1 GiB, since it materializes them."""
        size = problem.batch * problem.heads * problem.queries * problem.keys * problem.dtype.itemsize
        too_many = [f"it needs {size >> 20:,} MiB for the scores; the limit is 1,024 MiB"] if size > 1 << 30 else []
        return super().refuses(problem) + too_many


_found: dict[tuple[Callable[..., Tensor], torch.dtype, torch.device], str] = {}


def _tried(kernel: Callable[..., Tensor], dtype: torch.dtype, device: torch.device) -> str:
    """Why a kernel failed on (1, 1, 16, 64); empty if it did not. Cached. Raises OutOfMemoryError, which says nothing
    about the kernel.
    """
    key = (kernel, dtype, device)
    if key not in _found:
        _found[key] = _try(kernel, dtype, device)
    return _found[key]


def _try(kernel: Callable[..., Tensor], dtype: torch.dtype, device: torch.device) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            x: Any = torch.zeros(1, 1, 16, 64, device=device, dtype=dtype)
            with torch.inference_mode():
                kernel(x, x, x, None, False, 0.125)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch is built without CUDA
            reasons = [str(each.message).split(" (Triggered", 1)[0] for each in caught]
            return "; ".join(dict.fromkeys(reasons)) or str(error).splitlines()[0]
    return ""


def _device(device: torch.device) -> str:
    return "the CPU" if device.type == "cpu" else str(device)


def _kinds(problem: Problem) -> str:
    return " + ".join(sorted(problem.kinds))


def _bias_wants_grad(problem: Problem) -> bool:
    parts = problem.bias.parts if problem.bias else ()
    return any(getattr(part, "tensor", None) is not None and part.tensor.requires_grad for part in parts)  # type: ignore[attr-defined]
