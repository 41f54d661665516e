"""One decoder for GPT-2 and the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM), as a module of torch.

`GPT(config)` takes tokens (B, T) and gives logits; training uses that. `GPT.decode` runs prefill and decode steps of
several requests of different lengths: their tokens go through the linear layers in one packed row, and each request
attends to its own KV cache (`kv_cache.py`; on a GPU `kv_pool.py`). All matrix products are `nn.Linear`, so that
quantized ones can replace them (`quantized_linear.py`). Files are read by `load.py`.

Papers: GPT-2 (Radford 2019), RoPE (Su 2021, arXiv:2104.09864), RMSNorm (Zhang 2019, arXiv:1910.07467), SwiGLU
(Shazeer 2020, arXiv:2002.05202), grouped-query attention (Ainslie 2023, arXiv:2305.13245).

Try it: ``python -c "from studio_gpt.model import *; print(GPT(Config(vocab=99, layers=2, heads=4, width=32)))"``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.attention import Causal, attend
from studio.errors import UsageError
from studio_gpt.config import Config
from studio_gpt.kv_cache import AttentionHook, BatchedAttention, Segment

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class AttentionFn(Protocol):
    """Attention of a layer, injected into `Block`: (..., heads, head_dim) in, the same out."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor:
        """Attend."""


class Block(nn.Module):
    """One transformer layer: attention and MLP, each with a residual connection."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        c, self.layer = config, layer
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.act, self.gated = _ACTIVATIONS[c.activation], c.gated
        self.norm_1, self.norm_2 = _norm(c, c.width), _norm(c, c.width)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=c.qkv_bias)
        self.q_norm = nn.RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        self.k_norm = nn.RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        self.out = nn.Linear(c.heads * c.head_dim, c.width, bias=c.out_bias)
        self.up = nn.Linear(c.width, 2 * c.hidden if c.gated else c.hidden, bias=c.mlp_bias)  # gated: gate, then up
        self.down = nn.Linear(c.hidden, c.width, bias=c.mlp_bias)

    def forward(self, x: Tensor, rope_cos_sin: Tensor | None, attention_fn: AttentionFn) -> Tensor:
        """The next hidden states of x (..., width); `rope_cos_sin` is that of its positions, None without RoPE."""
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (sum(sizes), self.head_dim))
        q, k, v = qkv.split(sizes, -2)  # (..., H, D), (..., G, D), (..., G, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope_cos_sin is not None:
            q, k = _apply_rope(q, rope_cos_sin), _apply_rope(k, rope_cos_sin)
        x = x + self.out(attention_fn(self.layer, q, k, v).flatten(-2))  # (..., C)
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

    def forward(self, tokens: Tensor, logits_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, vocab) of tokens (B, T), each row a text of its own. Gradients flow.

        With a mask `logits_mask` (B, T) that is true N times, only the logits of those positions, (N, vocab).
        """
        if tokens.shape[-1] > self.config.context:
            raise UsageError(f"there are {tokens.shape[-1]} tokens; the context length is {self.config.context}")
        windows = self.config.windows

        def attention_fn(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, bias=Causal(window=windows[layer]))

        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self._hidden_states(tokens, positions, attention_fn)  # (B, T, C)
        return self.head(self.norm(x if logits_mask is None else x[logits_mask]))  # (B, T, V) or (N, V)

    def decode(self, segments: Sequence[Segment], hook: AttentionHook | None = None) -> Tensor:
        """Run a step of several requests: logits (sum of `num_logits`, vocab) float32, segment by segment.

        The KV caches are written and nothing else changes, so a repeated call gives the same. `hook` is called with the
        queries, keys and values of each layer. Raises UsageError if a cache or the context is too short.
        """
        return self.run(self.batch(segments), hook)

    def batch(self, segments: Sequence[Segment]) -> BatchedAttention:
        """The step that `run` takes for these segments. Raises UsageError as `decode` does."""
        _check(segments, self.config.context)
        return segments[0].cache.batch(segments, self.config)

    def run(self, step: BatchedAttention, hook: AttentionHook | None = None) -> Tensor:
        """Run a prepared step; see `decode`."""

        def hooked(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if hook is not None:
                hook(layer, q, k, v)
            return step(layer, q, k, v)

        with torch.inference_mode():
            x = self._hidden_states(step.tokens, step.positions, step if hook is None else hooked)  # (N, C)
            return self.head(self.norm(x if step.logits_indices is None else x[step.logits_indices])).float()

    def _hidden_states(self, tokens: Tensor, positions: Tensor, attention_fn: AttentionFn) -> Tensor:
        """The last layer's hidden states (..., T, width) for tokens (..., T) at positions (T,)."""
        x = self.embed(tokens)
        if self.places is not None:
            x = x + self.places(positions)
        rope_cos_sin = None if self.frequencies is None else _rope_cos_sin(positions, self.frequencies, x.dtype)
        for block in self.blocks:
            x = block(x, rope_cos_sin, attention_fn)
        return x

    def initialise(self, generator: torch.Generator | None = None, deviation: float = 0.02) -> GPT:
        """Draw weights as GPT-2 did: normal, with a smaller deviation for the projections onto the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            added = name.endswith(("out.weight", "down.weight"))
            std = deviation / math.sqrt(2 * self.config.layers) if added else deviation
            nn.init.normal_(parameter, std=std, generator=generator)
        return self


def _check(segments: Sequence[Segment], context: int) -> None:
    for each in segments:
        count, end = len(each.tokens), each.start + len(each.tokens)
        if each.tokens and not 0 <= each.num_logits <= count:
            raise UsageError(
                f"`num_logits` is {each.num_logits}; it must be from 0 to the {count} tokens of the segment"
            )
        if not each.tokens or end > context or end > each.cache.room:
            raise UsageError(
                f"a segment of {count} tokens at position {each.start}; give at least 1 token, within the context of"
                f" {context} and the KV cache of {each.cache.room}"
            )


def _norm(config: Config, width: int) -> nn.Module:
    return nn.RMSNorm(width, config.eps) if config.norm == "rms" else nn.LayerNorm(width, config.eps)


def _rope_cos_sin(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of RoPE, (2, T, 1, head_dim / 2), for positions (T,)."""
    angles = positions[:, None, None] * frequencies  # (T, 1, D / 2)
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def _apply_rope(x: Tensor, rope_cos_sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of x (..., T, heads, head_dim), in the order of transformers."""
    cos, sin = rope_cos_sin.to(x.dtype)  # under autocast queries have a shorter dtype than x
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
