"""The KV cache of a request, and attention over the KV caches of a batch of requests.

A `ContiguousKVCache` is one request's own memory, and `PerRequestAttention` attends over such caches request by
request: the fastest way on a CPU, as each request gets the kernel for its length. On a GPU `kv_pool.py` has another
pair with the same interface.

Try it: ``pytest tests/plugins/studio_gpt/test_model.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from studio.attention import Causal, attend, attend_rows
from studio_gpt.config import Config

AttentionHook = Callable[[int, Tensor, Tensor, Tensor], object]
"""Called with a layer's number and its queries, keys and values."""


class ContiguousKVCache:
    """Keys and values of one request, with a capacity of `room` tokens.

    It does not know how many tokens it holds: the caller says where to write (`Segment.start`), and entries behind that
    are never read. So a step that is repeated or abandoned does no harm.

    Attributes:
        kv: (layers, 2, room, kv_heads, head_dim).
    """

    def __init__(self, config: Config, room: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kv = torch.empty(config.layers, 2, room, config.kv_heads, config.head_dim, dtype=dtype, device=device)

    @property
    def room(self) -> int:
        """Its capacity in tokens."""
        return self.kv.shape[2]

    def batch(self, segments: Sequence[Segment], config: Config) -> BatchedAttention:
        """Attention for a step of segments that all have this kind of cache."""
        return PerRequestAttention(segments, config.windows, self.kv.device)


class RequestKVCache(Protocol):
    """The KV cache of a request: a `ContiguousKVCache`, or on a GPU a `kv_pool.PooledKVCache`."""

    @property
    def kv(self) -> Tensor:
        """(layers, 2, room, kv_heads, head_dim)."""

    @property
    def room(self) -> int:
        """Its capacity in tokens."""

    def batch(self, segments: Sequence[Segment], config: Config) -> BatchedAttention:
        """Attention for a step of segments that all have this kind of cache."""


@dataclass(frozen=True)
class Segment:
    """The tokens of one request in a step of `GPT.decode`: a chunk of its prompt (prefill), or its last token (decode).

    Attributes:
        tokens: the next tokens, at least one, at the positions from `start` on.
        cache: has the keys and values of the positions before `start`; those of `tokens` are written to it.
        num_logits: for how many of the last of these tokens logits are computed.
    """

    tokens: Sequence[int]
    start: int
    cache: RequestKVCache
    num_logits: int = 1


class BatchedAttention:
    """Attention for a step of several requests, whose tokens are packed in one row.

    Attributes:
        tokens, positions: (N,) on the device, of all segments.
        logits_indices: indices into the row for which logits are computed; None is all.
    """

    def __init__(self, tokens: Tensor, positions: Tensor, logits_indices: Tensor | None) -> None:
        self.tokens, self.positions, self.logits_indices = tokens, positions, logits_indices

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write a layer's keys and values to the caches and attend: q (N, H, D), k and v (N, G, D)."""
        raise NotImplementedError


class PerRequestAttention(BatchedAttention):
    """On a CPU: each segment writes to its own cache and attends with the fastest kernel for its length."""

    def __init__(self, segments: Sequence[Segment], windows: Sequence[int | None], device: torch.device) -> None:
        tokens = torch.tensor([token for segment in segments for token in segment.tokens], device=device)
        positions = [at for each in segments for at in range(each.start, each.start + len(each.tokens))]
        indices = _logits_indices(segments)
        chosen = torch.tensor(indices, dtype=torch.long, device=device) if len(indices) < len(positions) else None
        super().__init__(tokens, torch.tensor(positions, device=device), chosen)
        self.segments, self.windows = segments, windows
        self.single = all(len(segment.tokens) == 1 for segment in segments)
        if self.single:
            self.rows = [_TokenViews(segment, windows) for segment in segments]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See BatchedAttention."""
        if self.single:
            torch._foreach_copy_([row.new[layer] for row in self.rows], list(torch.stack((k, v), 1)))
            seen = [row.seen[layer] for row in self.rows]
            return attend_rows(q, [k for k, _ in seen], [v for _, v in seen])  # (N, H, D)
        outputs, at = [], 0
        for segment in self.segments:
            here = slice(at, at := at + len(segment.tokens))
            start, end, window = segment.start, segment.start + len(segment.tokens), self.windows[layer]
            kv = segment.cache.kv[layer]  # (2, room, G, D)
            kv[0, start:end], kv[1, start:end] = k[here], v[here]
            keys, values = kv[:, None, _first(start, window) : end]  # (1, K, G, D) each
            outputs.append(attend(q[here][None], keys, values, bias=Causal(window=window))[0])  # (n, H, D)
        return torch.cat(outputs)  # (N, H, D)


class _TokenViews:
    """Views of a cache for one new token: where its keys and values go, and those it attends to. They are made for all
    layers at once, since a view costs as much as a small kernel.
    """

    def __init__(self, segment: Segment, windows: Sequence[int | None]) -> None:
        kv, end = segment.cache.kv, segment.start + 1  # (layers, 2, room, G, D)
        cuts = {each: kv[:, :, None, _first(segment.start, each) : end].flatten(0, 1).unbind() for each in {*windows}}
        self.new = kv[:, :, segment.start].unbind()  # a layer: (2, G, D)
        self.seen = [cuts[each][2 * i : 2 * i + 2] for i, each in enumerate(windows)]  # a layer: (1, K, G, D) twice


def _first(start: int, window: int | None) -> int:
    """The first position that the token at `start` attends to."""
    return 0 if window is None else max(0, start + 1 - window)


def _logits_indices(segments: Sequence[Segment]) -> list[int]:
    """Indices into the packed row of the tokens whose logits are computed."""
    indices: list[int] = []
    end = 0
    for segment in segments:
        end += len(segment.tokens)
        indices += range(end - segment.num_logits, end)
    return indices
