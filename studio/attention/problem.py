"""`Problem`: the shapes, dtype, device and bias of one attention call, checked once, without the tensors.

A backend decides by it whether it supports a call.

Try it: ``studio attention --shape 1,4096,8,64``
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.attention.bias import AttentionShape, Bias, Causal, QuerySpan
from studio.caching import cached_property
from studio.errors import UsageError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Problem:
    """The sizes and settings of one attention call.

    Attributes:
        batch, queries, keys: rows, and query and key tokens per row.
        heads, kv_heads: query heads, and key/value heads; `heads` is a multiple of `kv_heads`.
        head_dim, value_dim: the head dimension of queries and keys, and of values.
        grad: whether gradients are needed.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    bias: Bias | None = None
    grad: bool = False

    def __post_init__(self) -> None:
        if self.heads != self.kv_heads and (not self.kv_heads or self.heads % self.kv_heads):
            raise UsageError(
                f"{self.heads} query heads, {self.kv_heads} key/value heads: the first must be a multiple of the second"
            )
        if self.dtype not in DTYPES:
            known = ", ".join(_name(each) for each in DTYPES)
            raise UsageError(
                f"the tensors are {_name(self.dtype)}; attention needs {known}", hint="convert them: `q.float()`"
            )
        if self.bias is not None:
            if not isinstance(self.bias, Bias):
                raise UsageError(
                    f"bias is {type(self.bias).__name__}; it must be a `studio.attention.Bias`",
                    hint="wrap a mask tensor: `Dense(tensor)`",
                )
            self.bias.check(self.shape)

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None) -> Problem:
        """The problem of three tensors (batch, tokens, heads, head_dim). Raises UsageError if they do not match."""
        for name, each in (("q", q), ("k", k), ("v", v)):
            if each.dim() != 4:
                raise UsageError(
                    f"{name} is {tuple(each.shape)}; it must have four dimensions: (batch, tokens, heads, head_dim)"
                )
        if len({q.shape[0], k.shape[0], v.shape[0]}) > 1 or k.shape[1:3] != v.shape[1:3] or q.shape[3] != k.shape[3]:
            raise UsageError(
                f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not match: they need one batch "
                "size, k and v the same tokens and heads, q and k the same head_dim"
            )
        if len({q.dtype, k.dtype, v.dtype}) > 1 or len({q.device, k.device, v.device}) > 1:
            places = ", ".join(
                f"{n} {_name(each.dtype)} on {each.device}" for n, each in zip("qkv", (q, k, v), strict=True)
            )
            raise UsageError(f"q, k and v must have one dtype and one device: {places}", hint="`k.to(q)`")
        grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        sizes = (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])
        return cls(*sizes, q.dtype, q.device, bias, grad)

    @cached_property
    def shape(self) -> AttentionShape:
        """The sizes of the scores that a bias applies to."""
        return AttentionShape(self.batch, self.heads, self.queries, self.keys)

    @cached_property
    def key(self) -> Hashable:
        """Equal for problems that the same backend serves."""
        bias = None if self.bias is None else self.bias.signature(self.shape)
        return self.sizes, self.dtype, self.device, self.grad, bias

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes, in the order of the attributes."""
        return self.batch, self.queries, self.keys, self.heads, self.kv_heads, self.head_dim, self.value_dim

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute: the output has no elements, or is zeros for lack of keys."""
        return 0 in (self.batch, self.queries, self.keys, self.heads, self.head_dim, self.value_dim)

    @property
    def kinds(self) -> frozenset[str]:
        """The class names of the bias's terms."""
        return frozenset(type(part).__name__ for part in self.bias.parts) if self.bias else frozenset()

    @property
    def open(self) -> bool:
        """Whether nothing is masked: no bias, or a causal one with a single query after a KV cache."""
        if self.bias is None:
            return True
        whole = QuerySpan(0, 0, self.queries)
        return isinstance(self.bias, Causal) and self.bias.allows_all(whole, 0, self.keys, self.shape)

    @property
    def plain_causal(self) -> bool:
        """Whether the bias equals `is_causal` of torch's kernels."""
        return isinstance(self.bias, Causal) and self.bias.plain(self.shape)

    @property
    def corner_causal(self) -> bool:
        """Whether the bias is causal from the bottom right: the last query attends to the last key, as in chunked
        prefill.
        """
        bias = self.bias
        return isinstance(bias, Causal) and bias.window is None and bias.shift(self.shape) == self.keys - self.queries

    @property
    def dtype_name(self) -> str:
        """The dtype's name, such as `float32`."""
        return _name(self.dtype)

    def mask_bytes(self) -> int:
        """Bytes of the bias as a float mask, before broadcasting."""
        if self.bias is None:
            return 0
        rows = self.batch if self.kinds & {"Lengths"} else 1
        for part in self.bias.parts:
            tensor = getattr(part, "tensor", None)
            if tensor is not None and tensor.dim() >= 3:
                lead = tensor.shape[:-2]
                rows = max(rows, lead[0] if len(lead) == 2 else 1) * lead[-1]
        return rows * self.queries * self.keys * self.dtype.itemsize


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
