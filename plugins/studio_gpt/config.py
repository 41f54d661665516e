"""The shape of a decoder (GPT-2 or the Llama family): layers, heads, RoPE, norms, activation.

Papers: RoPE (Su 2021, arXiv:2104.09864), grouped-query attention (Ainslie 2023, arXiv:2305.13245).

Try it: ``python -c "from studio_gpt.config import *; print(llama(vocab=99, layers=2, heads=4, width=32))"``
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.errors import UsageError

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `theta` is the base; `scaling` stretches the frequencies for a longer context.

    `linear` divides all of them by `factor`. `llama3` keeps those whose wavelength is short against `original`, the
    context length of pre-training, divides the long ones, and interpolates between the two (Llama 3.1). `divisors` has
    one number for each frequency, as GGUF files store it.
    """

    theta: float = 10_000.0
    scaling: str = "none"  # none, linear, llama3, divisors
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original: int = 8192
    divisors: tuple[float, ...] = ()

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per token, (head_dim / 2,) float32, the highest frequency first."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / self.theta**exponents  # (D / 2,)
        if self.scaling == "divisors":
            return frequencies / torch.tensor(self.divisors)
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            rotations = self.original * frequencies / (2 * math.pi)  # within the context of pre-training
            span = self.high_freq_factor - self.low_freq_factor
            unscaled = ((rotations - self.low_freq_factor) / span).clamp(0, 1)
            return unscaled * frequencies + (1 - unscaled) * frequencies / self.factor
        return frequencies


@dataclass(frozen=True)
class Config:
    """The shape of a decoder. The defaults are GPT-2's; `llama` has the other family's.

    Attributes:
        vocab, context: vocabulary size, and context length in tokens.
        kv_heads, head_dim, hidden: default to `heads`, width / heads and 4 * width.
        rope: rotary position embedding; None is learned positions.
        norm: ``layer`` or ``rms``, with `eps`.
        gated: SwiGLU in place of a plain two-layer MLP.
        qk_norm: RMSNorm on each head's queries and keys (Qwen3).
        windows: sliding attention window of each layer in tokens, None is none; empty is none in every layer.
        tied: the output head shares the weights of the embedding.
    """

    vocab: int
    context: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    kv_heads: int = 0
    head_dim: int = 0
    hidden: int = 0
    rope: Rope | None = None
    norm: str = "layer"
    eps: float = 1e-5
    activation: str = "gelu_tanh"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    tied: bool = True

    def __post_init__(self) -> None:
        unset = {
            "kv_heads": self.heads, "head_dim": self.width // self.heads, "hidden": 4 * self.width,
            "windows": (None,) * self.layers,
        }  # fmt: skip
        for name, value in unset.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.heads % self.kv_heads:
            raise UsageError(
                f"{self.heads} query heads, {self.kv_heads} key/value heads: the second must divide the first"
            )
        if self.rope and self.head_dim % 2:
            raise UsageError(f"`head_dim` is {self.head_dim}; rotary positions need an even number")
        if len(self.windows) != self.layers:
            raise UsageError(f"there are {len(self.windows)} windows for {self.layers} layers; give one per layer")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"the activation is `{self.activation}`; it must be one of {', '.join(ACTIVATIONS)}")


def llama(**sizes: Any) -> Config:
    """A Llama of the given sizes: RoPE, RMSNorm, SwiGLU, no biases, tied embeddings."""
    plain: dict[str, Any] = {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
    return Config(**{"rope": Rope(), "norm": "rms", "activation": "silu", "gated": True, **plain, **sizes})
