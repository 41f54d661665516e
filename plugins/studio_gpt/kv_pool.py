"""The KV caches of many requests on a GPU: one pool with a span for each request, and attention over all at once.

A `PooledKVCache` takes the place of a `kv_cache.ContiguousKVCache`. The indices of a step (tokens, positions, lengths)
are one small tensor that is uploaded without synchronising, and the number of kernel launches does not depend on the
number of requests.

Try it: ``pytest tests/plugins/studio_gpt/test_gpu.py``
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from studio import devices
from studio.attention import Spans, attend_spans
from studio_gpt.config import Config
from studio_gpt.kv_cache import BatchedAttention, Segment

IDLE_BYTES = 64 << 20  # bytes that an idle pool keeps allocated
FEWEST_KEYS = 256  # keys are padded to powers of two from here on, so that few lengths need a CUDA graph


class KVCachePool:
    """A buffer of keys and values, from which requests allocate spans. It grows when it is full. Thread-safe.

    Attributes:
        kv: (layers, 2, tokens, kv_heads, head_dim); a new tensor after each growth.
        moved: how many times `kv` was replaced.
        packed_bytes: 0, since each span counts with its request (`PooledKVCache.packed_bytes`).
    """

    packed_bytes = 0

    def __init__(self, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.moved = 0
        self.kv = self._empty(0)
        self._free: list[tuple[int, int]] = []  # begin and end of each free range, in order and disjoint
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        c = self.config
        return c.layers * 2 * c.kv_heads * c.head_dim * self.dtype.itemsize

    def allocate(self, room: int) -> PooledKVCache:
        """Allocate a span of `room` tokens for one request; it is freed when the returned object is collected."""
        with self._lock:
            self._take_back()
            if not any(end - begin >= room for begin, end in self._free):
                self._grow(room)
            at = next(i for i, (begin, end) in enumerate(self._free) if end - begin >= room)
            begin, end = self._free.pop(at)
            if begin + room < end:
                self._free.insert(at, (begin + room, end))
        span = PooledKVCache(self, begin, room)
        weakref.finalize(span, self._give_back, begin, begin + room).atexit = False
        return span

    @property
    def _idle(self) -> bool:
        size = self.kv.shape[2]
        return not size or self._free == [(0, size)]

    def _empty(self, tokens: int) -> Tensor:
        c = self.config
        self.moved += 1
        return torch.zeros(c.layers, 2, tokens, c.kv_heads, c.head_dim, dtype=self.dtype, device=self.device)

    def _give_back(self, begin: int, end: int) -> None:
        """Called by the garbage collector. If the lock is held (by this thread, say), the next call frees it."""
        self._returned.append((begin, end))
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
                if self._idle and self.kv.nbytes > IDLE_BYTES:
                    self.kv, self._free = self._empty(0), []
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        """Merge the returned spans into the free ranges."""
        while self._returned:
            self._free.append(self._returned.popleft())
        joined: list[tuple[int, int]] = []
        for begin, end in sorted(self._free):
            if joined and joined[-1][1] == begin:
                begin = joined.pop()[0]
            joined.append((begin, end))
        self._free = joined

    def _grow(self, room: int) -> None:
        """Grow by at least half; the contents are copied."""
        size = self.kv.shape[2]
        if self._idle:
            self.kv = self._empty(0)  # free the old buffer before allocating the new one
            self.kv, self._free = self._empty(max(room, size)), [(0, max(room, size))]
            return
        last = self._free.pop() if self._free and self._free[-1][1] == size else (size, size)
        whole = size + max(room - (last[1] - last[0]), size // 2)
        kv = self._empty(whole)
        kv[:, :, :size] = self.kv
        self.kv, self._free = kv, [*self._free, (last[0], whole)]


@dataclass(eq=False)
class PooledKVCache:
    """The KV cache of one request: a span of `room` tokens in a pool."""

    pool: KVCachePool
    begin: int
    room: int

    @property
    def kv(self) -> Tensor:
        """(layers, 2, room, kv_heads, head_dim), a view of the pool."""
        return self.pool.kv[:, :, self.begin : self.begin + self.room]

    @property
    def packed_bytes(self) -> int:
        """Its bytes, under the name that the host's memory ledger reads."""
        return self.room * self.pool.token_bytes

    def batch(self, segments: Sequence[Segment], config: Config) -> PooledAttention:
        """Attention for a step of segments whose caches are all spans of this pool. Uploads one tensor."""
        begins = [cast(PooledKVCache, segment.cache).begin for segment in segments]
        counts = [len(segment.tokens) for segment in segments]
        most_keys = max(segment.start + n for segment, n in zip(segments, counts, strict=True))
        sent = devices.device(str(self.pool.device)).upload(torch.tensor(_step_numbers(segments, begins, counts)))
        return PooledAttention(
            self.pool, config, sent, StepShape(len(segments), sum(counts), max(counts), _padded_keys(most_keys))
        )


@dataclass(frozen=True)
class StepShape:
    """The fixed sizes of a step in a CUDA graph: requests, tokens of all, most tokens and keys of one."""

    requests: int
    tokens: int
    most_tokens: int
    most_keys: int


def _padded_keys(keys: int) -> int:
    return max(FEWEST_KEYS, 1 << (keys - 1).bit_length())


def _step_numbers(segments: Sequence[Segment], begins: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Tokens, their positions, their slots in the pool; where segments begin, in the row and in the pool; their number
    of keys; last the indices of the tokens whose logits are computed.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logits_indices: list[int] = []
    ends = [0]
    for segment, begin, count in zip(segments, begins, counts, strict=True):
        tokens += segment.tokens
        positions += range(segment.start, segment.start + count)
        slots += range(begin + segment.start, begin + segment.start + count)
        ends.append(ends[-1] + count)
        logits_indices += range(ends[-1] - segment.num_logits, ends[-1])
    used = [segment.start + count for segment, count in zip(segments, counts, strict=True)]
    return [*tokens, *positions, *slots, *ends, *begins, 0, *used, *logits_indices]


class PooledAttention(BatchedAttention):
    """Attention over one pool, from the numbers that were uploaded; see `kv_cache.BatchedAttention`."""

    def __init__(self, pool: KVCachePool, config: Config, sent: Tensor, shape: StepShape) -> None:
        n, t = shape.requests, shape.tokens
        tokens, positions, self._slots, lengths, logits_indices = sent.split(
            (t, t, t, 3 * n + 2, len(sent) - 3 * t - 3 * n - 2)
        )
        ends, begins, used = lengths.int().split((n + 1, n + 1, n))
        super().__init__(tokens, positions, None if len(logits_indices) == t else logits_indices)
        self._spans = Spans(ends, begins, used, shape.most_tokens, shape.most_keys)
        self._kv, self._windows, self.sent, self.shape = pool.kv, config.windows, sent, shape

    @property
    def is_decode(self) -> bool:
        """Whether this is a decode step: one token per request, with logits. Only these are captured as CUDA graphs."""
        return self.shape.most_tokens == 1 and self.logits_indices is None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values to the pool, and attend."""
        keys, values = self._kv[layer].unbind()  # (tokens, G, D) each
        keys.index_copy_(0, self._slots, k)
        values.index_copy_(0, self._slots, v)
        return attend_spans(q, keys, values, self._spans, self._windows[layer])
