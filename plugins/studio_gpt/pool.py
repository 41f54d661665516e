"""Keys and values of many requests on a GPU: one pool with a span for each, and a step of all of them at once.

A `Span` takes the place of a `cache.Cache`. What a step needs to know (tokens, places, lengths) is one small tensor
that is sent without a wait; from there on the number of launches does not depend on how many requests there are. This
module knows nothing of what is decoded, or of files.

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
from studio_gpt.cache import Piece, Together
from studio_gpt.model import Config

KEPT = 64 << 20  # bytes that an empty pool keeps
FEWEST_KEYS = 256  # keys are padded to powers of two from here on, so that few lengths are captured


class Pool:
    """Room for tokens of requests; it grows when it is full, and is given up when nobody uses it. Thread-safe.

    Attributes:
        kv: (layers, 2, tokens, kv_heads, head_dim); another one after it has grown.
        moved: how often it became another one.
        packed_bytes: 0, since what is lent counts with those who have it (`Span.packed_bytes`).
    """

    packed_bytes = 0

    def __init__(self, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.moved = 0
        self.kv = self._made(0)
        self._free: list[tuple[int, int]] = []  # where free stretches begin and end, in order and apart
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        c = self.config
        return c.layers * 2 * c.kv_heads * c.head_dim * self.dtype.itemsize

    def span(self, room: int) -> Span:
        """Room for so many tokens of one request, for as long as what is returned is alive."""
        with self._lock:
            self._take_back()
            if not any(end - begin >= room for begin, end in self._free):
                self._grow(room)
            at = next(i for i, (begin, end) in enumerate(self._free) if end - begin >= room)
            begin, end = self._free.pop(at)
            if begin + room < end:
                self._free.insert(at, (begin + room, end))
        span = Span(self, begin, room)
        weakref.finalize(span, self._give_back, begin, begin + room).atexit = False
        return span

    @property
    def _idle(self) -> bool:
        size = self.kv.shape[2]
        return not size or self._free == [(0, size)]

    def _made(self, tokens: int) -> Tensor:
        c = self.config
        self.moved += 1
        return torch.zeros(c.layers, 2, tokens, c.kv_heads, c.head_dim, dtype=self.dtype, device=self.device)

    def _give_back(self, begin: int, end: int) -> None:
        """Called by the garbage collector, perhaps while this thread holds the lock; then the next one sees to it."""
        self._returned.append((begin, end))
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
                if self._idle and self.kv.nbytes > KEPT:
                    self.kv, self._free = self._made(0), []
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        """Join what was returned to the free stretches."""
        while self._returned:
            self._free.append(self._returned.popleft())
        joined: list[tuple[int, int]] = []
        for begin, end in sorted(self._free):
            if joined and joined[-1][1] == begin:
                begin = joined.pop()[0]
            joined.append((begin, end))
        self._free = joined

    def _grow(self, room: int) -> None:
        """At least half as much again; what is there is copied."""
        size = self.kv.shape[2]
        if self._idle:
            self.kv = self._made(0)  # so that the old one is gone before the new one comes
            self.kv, self._free = self._made(max(room, size)), [(0, max(room, size))]
            return
        last = self._free.pop() if self._free and self._free[-1][1] == size else (size, size)
        whole = size + max(room - (last[1] - last[0]), size // 2)
        kv = self._made(whole)
        kv[:, :, :size] = self.kv
        self.kv, self._free = kv, [*self._free, (last[0], whole)]


@dataclass(eq=False)
class Span:
    """A request's keys and values in a pool: what `cache.Cache` is on a CPU, with room for `room` tokens."""

    pool: Pool
    begin: int
    room: int

    @property
    def kv(self) -> Tensor:
        """(layers, 2, room, kv_heads, head_dim), a view of the pool."""
        return self.pool.kv[:, :, self.begin : self.begin + self.room]

    @property
    def packed_bytes(self) -> int:
        """Its bytes, by the name by which the host's ledger counts them."""
        return self.room * self.pool.token_bytes

    def together(self, pieces: Sequence[Piece], config: Config) -> Pooled:
        """A step of pieces, all of whose caches are spans of this pool. Sends one tensor."""
        begins = [cast(Span, piece.cache).begin for piece in pieces]
        counts = [len(piece.tokens) for piece in pieces]
        most_keys = max(piece.start + n for piece, n in zip(pieces, counts, strict=True))
        sent = devices.device(str(self.pool.device)).upload(torch.tensor(_numbers(pieces, begins, counts)))
        return Pooled(self.pool, config, sent, Shape(len(pieces), sum(counts), max(counts), _padded(most_keys)))


@dataclass(frozen=True)
class Shape:
    """What is fixed of a step when it is captured: requests, tokens of all, most tokens and keys of one."""

    requests: int
    tokens: int
    most_tokens: int
    most_keys: int


def _padded(keys: int) -> int:
    return max(FEWEST_KEYS, 1 << (keys - 1).bit_length())


def _numbers(pieces: Sequence[Piece], begins: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Tokens, their positions and places in the pool; where the pieces begin, in the row and in the pool; their keys;
    last which of the tokens' logits are wanted.
    """
    tokens: list[int] = []
    positions: list[int] = []
    due: list[int] = []
    wanted: list[int] = []
    ends = [0]
    for piece, begin, count in zip(pieces, begins, counts, strict=True):
        tokens += piece.tokens
        positions += range(piece.start, piece.start + count)
        due += range(begin + piece.start, begin + piece.start + count)
        ends.append(ends[-1] + count)
        wanted += range(ends[-1] - piece.wanted, ends[-1])
    used = [piece.start + count for piece, count in zip(pieces, counts, strict=True)]
    return [*tokens, *positions, *due, *ends, *begins, 0, *used, *wanted]


class Pooled(Together):
    """A step of pieces in one pool, from the numbers that were sent; see `cache.Together`."""

    def __init__(self, pool: Pool, config: Config, sent: Tensor, shape: Shape) -> None:
        n, t = shape.requests, shape.tokens
        tokens, positions, self._due, lengths, wanted = sent.split((t, t, t, 3 * n + 2, len(sent) - 3 * t - 3 * n - 2))
        ends, begins, used = lengths.int().split((n + 1, n + 1, n))
        super().__init__(tokens, positions, None if len(wanted) == t else wanted)
        self._spans = Spans(ends, begins, used, shape.most_tokens, shape.most_keys)
        self._kv, self._windows, self.sent, self.shape = pool.kv, config.windows, sent, shape

    @property
    def decodes(self) -> bool:
        """Whether each request has one token, whose logits are wanted: then the shape says all that is launched."""
        return self.shape.most_tokens == 1 and self.wanted is None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values, and attend."""
        keys, values = self._kv[layer].unbind()  # (tokens, G, D) each
        keys.index_copy_(0, self._due, k)
        values.index_copy_(0, self._due, v)
        return attend_spans(q, keys, values, self._spans, self._windows[layer])
