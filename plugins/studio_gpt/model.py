"""One decoder for GPT-2 and the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM), as a module of torch.

`GPT(config)` takes tokens (B, T) and gives logits; that is what training uses. `GPT.decode` takes requests of different
lengths at once: their tokens go through the linear layers in one packed row, and attention looks at what each has
cached: request by request at its own `Cache`, or on a GPU all at once at their spans of a pool (`pool.py`). All matrix
products are `nn.Linear`, so that a faster one can take its place. This module knows nothing of files (`load.py`),
tokenizers or sampling.

Papers: GPT-2 (Radford 2019), RoPE (Su 2021, arXiv:2104.09864), RMSNorm (Zhang 2019, arXiv:1910.07467), SwiGLU
(Shazeer 2020, arXiv:2002.05202), grouped heads (Ainslie 2023, arXiv:2305.13245).

Try it: ``python -c "from studio_gpt.model import *; print(GPT(Config(vocab=99, layers=2, heads=4, width=32)))"``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.attention import Causal, attend
from studio.errors import UsageError
from studio_gpt.cache import Piece, Together, Watch

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `theta` is the base; `scaling` stretches the frequencies for a longer context.

    `linear` divides all of them by `factor`. `llama3` leaves those whose wavelength is short against `original`, the
    context of the first training, divides the long ones, and passes smoothly from one to the other (Llama 3.1).
    `divisors` has one number for each frequency, as GGUF files write the same thing.
    """

    theta: float = 10_000.0
    scaling: str = "none"  # none, linear, llama3, divisors
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original: int = 8192
    divisors: tuple[float, ...] = ()

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians a token, (head_dim / 2,) float32, from the fastest to the slowest."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / self.theta**exponents  # (D / 2,)
        if self.scaling == "divisors":
            return frequencies / torch.tensor(self.divisors)
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            turns = self.original * frequencies / (2 * math.pi)  # within the context of the first training
            span = self.high_freq_factor - self.low_freq_factor
            kept = ((turns - self.low_freq_factor) / span).clamp(0, 1)
            return kept * frequencies + (1 - kept) * frequencies / self.factor
        return frequencies


@dataclass(frozen=True)
class Config:
    """The shape of a decoder. The defaults are GPT-2's; `llama` has the other family's.

    Attributes:
        vocab, context: tokens known, and tokens that fit (learned positions cannot go beyond).
        kv_heads, head_dim, hidden: `heads`, width / heads and 4 * width unless given.
        rope: rotary positions; None is learned ones.
        norm: ``layer`` or ``rms``, with `eps`.
        gated: SwiGLU in place of a plain two-layer MLP.
        qk_norm: RMSNorm on each head's queries and keys (Qwen3).
        windows: for each layer how many of the last tokens are seen, None for all; empty is None everywhere.
        tied: the head uses the weights of the embedding.
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
                f"there are {self.heads} heads and {self.kv_heads} of keys; the second must divide the first"
            )
        if self.rope and self.head_dim % 2:
            raise UsageError(f"a head has {self.head_dim} numbers; rotary positions need an even count")
        if len(self.windows) != self.layers:
            raise UsageError(f"there are {self.layers} layers and {len(self.windows)} windows; give one a layer")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"the activation is `{self.activation}`; known: {', '.join(ACTIVATIONS)}")


def llama(**sizes: Any) -> Config:
    """A Llama of the given sizes: RoPE, RMSNorm, SwiGLU, no biases, tied embeddings."""
    plain: dict[str, Any] = {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
    return Config(**{"rope": Rope(), "norm": "rms", "activation": "silu", "gated": True, **plain, **sizes})


class Look(Protocol):
    """How the queries of a layer look at keys and values; (..., heads, head_dim) in, the same out."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor:
        """Attend."""


class Block(nn.Module):
    """One layer: attention and MLP, each added to what went in."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        c, self.layer = config, layer
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.act, self.gated = ACTIVATIONS[c.activation], c.gated
        self.norm_1, self.norm_2 = _norm(c, c.width), _norm(c, c.width)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=c.qkv_bias)
        self.q_norm = nn.RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        self.k_norm = nn.RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        self.out = nn.Linear(c.heads * c.head_dim, c.width, bias=c.out_bias)
        self.up = nn.Linear(c.width, 2 * c.hidden if c.gated else c.hidden, bias=c.mlp_bias)  # gated: gate, then up
        self.down = nn.Linear(c.hidden, c.width, bias=c.mlp_bias)

    def forward(self, x: Tensor, rotation: Tensor | None, look: Look) -> Tensor:
        """The next stream of an x (..., width); `rotation` is what `_rotation` gives for its positions."""
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (sum(sizes), self.head_dim))
        q, k, v = qkv.split(sizes, -2)  # (..., H, D), (..., G, D), (..., G, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = _rotate(q, rotation), _rotate(k, rotation)
        x = x + self.out(look(self.layer, q, k, v).flatten(-2))  # (..., C)
        h = self.up(self.norm_2(x))
        if self.gated:
            gate, h = h.chunk(2, -1)
            return x + self.down(self.act(gate) * h)
        return x + self.down(self.act(h))


class GPT(nn.Module):
    """The decoder. Weights are torch's defaults until they are loaded, or `initialise` draws them for training."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.places = None if config.rope else nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = _norm(config, config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        self.frequencies: Tensor | None
        self.register_buffer(
            "frequencies", config.rope.frequencies(config.head_dim) if config.rope else None, persistent=False
        )

    def forward(self, tokens: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits (B, T, vocab) of tokens (B, T), each row by itself and from its start. Gradients flow.

        Where a mask `wanted` (B, T) with N true is given, the logits are those places' alone, (N, vocab).
        """
        if tokens.shape[-1] > self.config.context:
            raise UsageError(f"there are {tokens.shape[-1]} tokens; the context has room for {self.config.context}")
        windows = self.config.windows

        def look(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, bias=Causal(window=windows[layer]))

        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self._stream(tokens, positions, look)  # (B, T, C)
        return self.head(self.norm(x if wanted is None else x[wanted]))  # (B, T, V) or (N, V)

    def decode(self, pieces: Sequence[Piece], watch: Watch | None = None) -> Tensor:
        """Move requests on together: logits (sum of `wanted`, vocab) float32, piece by piece, and caches written.

        Nothing else changes: done again with the same pieces it gives the same. `watch` is called with what each
        layer attends with. Raises UsageError if a cache or the context is too short.
        """
        return self.run(self.together(pieces), watch)

    def together(self, pieces: Sequence[Piece]) -> Together:
        """What `run` takes for these pieces. Raises UsageError as `decode` does."""
        _check(pieces, self.config.context)
        return pieces[0].cache.together(pieces, self.config)

    def run(self, step: Together, watch: Watch | None = None) -> Tensor:
        """See `decode`."""

        def look(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if watch is not None:
                watch(layer, q, k, v)
            return step(layer, q, k, v)

        with torch.inference_mode():
            x = self._stream(step.tokens, step.positions, step if watch is None else look)  # (N, C)
            return self.head(self.norm(x if step.wanted is None else x[step.wanted])).float()

    def _stream(self, tokens: Tensor, positions: Tensor, look: Look) -> Tensor:
        """What the last layer leaves for tokens (..., T) at positions (T,): (..., T, width)."""
        x = self.embed(tokens)
        if self.places is not None:
            x = x + self.places(positions)
        rotation = None if self.frequencies is None else _rotation(positions, self.frequencies, x.dtype)
        for block in self.blocks:
            x = block(x, rotation, look)
        return x

    def initialise(self, generator: torch.Generator | None = None, deviation: float = 0.02) -> GPT:
        """Draw weights as GPT-2 did: normal, and smaller where a layer adds to the stream, as many add up."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            added = name.endswith(("out.weight", "down.weight"))
            std = deviation / math.sqrt(2 * self.config.layers) if added else deviation
            nn.init.normal_(parameter, std=std, generator=generator)
        return self


def _check(pieces: Sequence[Piece], context: int) -> None:
    for piece in pieces:
        end = piece.start + len(piece.tokens)
        if piece.tokens and not 0 <= piece.wanted <= len(piece.tokens):
            raise UsageError(f"logits of {piece.wanted} tokens are wanted; there are {len(piece.tokens)}")
        if not piece.tokens or end > context or end > piece.cache.room:
            raise UsageError(
                f"{len(piece.tokens)} tokens at {piece.start}; give one at least, the context has room for {context}"
                f" and the cache for {piece.cache.room}"
            )


def _norm(config: Config, width: int) -> nn.Module:
    return nn.RMSNorm(width, config.eps) if config.norm == "rms" else nn.LayerNorm(width, config.eps)


def _rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines and sines (2, T, 1, head_dim / 2) of positions (T,)."""
    angles = positions[:, None, None] * frequencies  # (T, 1, D / 2)
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of x (..., T, heads, head_dim); transformers' order of numbers."""
    cos, sin = rotation.to(x.dtype)  # under autocast queries are shorter than the stream
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
