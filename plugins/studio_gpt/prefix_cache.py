"""Prefix cache: keys and values of prompt beginnings, computed once and reused by requests with the same beginning.

A block is `BLOCK` tokens. Its key is a hash of all tokens up to its end, so a block is found only behind the same
prefix. The number of blocks is fixed and allocated at once, so that it is counted with the model's weights. The least
recently used block is evicted, and of a text the last block first; of a longer text the beginning is stored.

Try it: ``pytest tests/plugins/studio_gpt/test_prefix_cache.py``
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch

from studio_gpt.config import Config
from studio_gpt.kv_cache import RequestKVCache

BLOCK = 32  # tokens
MAX_TOKENS = 1024


class PrefixCache:
    """Keys and values of blocks, by hash. Not thread-safe."""

    def __init__(self, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        count = min(MAX_TOKENS, config.context) // BLOCK
        shape = (count, config.layers, 2, BLOCK, config.kv_heads, config.head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._free = list(range(count))
        self.hits = 0  # blocks that were reused

    def load(self, tokens: Sequence[int], cache: RequestKVCache, num_computed: int) -> int:
        """Copy cached blocks behind the first `num_computed` tokens into a request's cache; return the new
        `num_computed`.

        The last token is never copied, since its logits are needed. Nothing is copied from within a block.
        """
        if num_computed % BLOCK:
            return num_computed
        found: list[tuple[int, int]] = []
        keys: list[bytes] = []
        for end, key in _blocks(tokens):
            if end <= num_computed:
                continue
            if key not in self._slots or end >= len(tokens):
                break
            found.append((end, self._slots[key]))
            keys.append(key)
        self._use(keys)
        for begin, end, slot, count in _runs(found):
            copied = cache.kv[:, :, begin:end].unflatten(2, (count, BLOCK))
            copied.copy_(self.kv[slot : slot + count].permute(1, 2, 0, 3, 4, 5))
        self.hits += len(found)
        return found[-1][0] if found else num_computed

    def store(self, tokens: Sequence[int], cache: RequestKVCache, begin: int, end: int) -> None:
        """Store the blocks of a request's cache that end behind `begin` and not behind `end`."""
        blocks = list(_blocks(tokens[: min(end, len(self.kv) * BLOCK)]))
        self._use([key for _, key in blocks if key in self._slots])  # so that none of these is evicted
        new = [(stop, key) for stop, key in blocks if stop > begin and key not in self._slots]
        while len(self._free) < len(new):
            self._free.append(self._slots.popitem(last=False)[1])
        slots, self._free = self._free[: len(new)], self._free[len(new) :]
        for first, last, slot, count in _runs([(stop, slot) for (stop, _), slot in zip(new, slots, strict=True)]):
            copied = cache.kv[:, :, first:last].unflatten(2, (count, BLOCK))
            self.kv[slot : slot + count] = copied.permute(2, 0, 1, 3, 4, 5)
        self._slots.update({key: slot for (_, key), slot in zip(new, slots, strict=True)})
        self._use([key for _, key in blocks if key in self._slots])

    def _use(self, keys: Sequence[bytes]) -> None:
        """Mark blocks of one text as used. The last of them is evicted first: the others do not depend on it."""
        for key in reversed(keys):
            self._slots.move_to_end(key)


def _runs(blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Runs of blocks, given by end and slot, that are adjacent in both: first token, last token, first slot and number
    of blocks. Each run is one copy.
    """
    at = 0
    for i, (end, slot) in enumerate(blocks):
        if i + 1 == len(blocks) or blocks[i + 1] != (end + BLOCK, slot + 1):
            count = i + 1 - at
            yield end - count * BLOCK, end, slot + 1 - count, count
            at = i + 1


def _blocks(tokens: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The end of each whole block, and its key."""
    key = b""
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        key = blake2b(key + array("q", tokens[end - BLOCK : end]).tobytes(), digest_size=16).digest()
        yield end, key
