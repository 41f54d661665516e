"""Beginnings of prompts, computed once: keys and values of the last blocks of tokens, for requests that begin alike.

A block is `BLOCK` tokens; its name is a hash of all tokens up to its end, so that a block is found only behind the same
beginning. There is room for a fixed number, made at once so that it is counted with the model's weights; the block that
was used longest ago makes place, of a text its last one. Of a longer text the beginning is kept. This module knows
nothing of requests.

Try it: ``pytest tests/plugins/studio_gpt/test_prefixes.py``
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch

from studio_gpt.cache import Held
from studio_gpt.model import Config

BLOCK = 32  # tokens
MOST_TOKENS = 1024


class Prefixes:
    """Blocks by name. Not for several threads at once."""

    def __init__(self, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        blocks = min(MOST_TOKENS, config.context) // BLOCK
        shape = (blocks, config.layers, 2, BLOCK, config.kv_heads, config.head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)
        self._places: OrderedDict[bytes, int] = OrderedDict()  # those used longest ago first
        self._free = list(range(blocks))
        self.hits = 0  # blocks that needed no computing

    def take(self, tokens: Sequence[int], cache: Held, known: int) -> int:
        """Copy what is known of the tokens behind the first `known` into the cache; how many are known then.

        The last token is never among them, since its logits are wanted. A beginning within a block takes nothing.
        """
        if known % BLOCK:
            return known
        found: list[tuple[int, int]] = []
        names: list[bytes] = []
        for end, name in _blocks(tokens):
            if end <= known:
                continue
            if name not in self._places or end >= len(tokens):
                break
            found.append((end, self._places[name]))
            names.append(name)
        self._use(names)
        for begin, end, place, count in _runs(found):
            blocks = cache.kv[:, :, begin:end].unflatten(2, (count, BLOCK))
            blocks.copy_(self.kv[place : place + count].permute(1, 2, 0, 3, 4, 5))
        self.hits += len(found)
        return found[-1][0] if found else known

    def keep(self, tokens: Sequence[int], cache: Held, begin: int, end: int) -> None:
        """Keep the blocks of the cache that end behind `begin` and not behind `end`."""
        own = list(_blocks(tokens[: min(end, len(self.kv) * BLOCK)]))
        self._use([name for _, name in own if name in self._places])  # so that none of these makes place
        new = [(stop, name) for stop, name in own if stop > begin and name not in self._places]
        while len(self._free) < len(new):
            self._free.append(self._places.popitem(last=False)[1])
        places, self._free = self._free[: len(new)], self._free[len(new) :]
        for first, last, place, count in _runs([(stop, place) for (stop, _), place in zip(new, places, strict=True)]):
            blocks = cache.kv[:, :, first:last].unflatten(2, (count, BLOCK))
            self.kv[place : place + count] = blocks.permute(2, 0, 1, 3, 4, 5)
        self._places.update({name: place for (_, name), place in zip(new, places, strict=True)})
        self._use([name for _, name in own if name in self._places])

    def _use(self, names: Sequence[bytes]) -> None:
        """Note that blocks of one text were used. The last of them makes place first: the others do without it."""
        for name in reversed(names):
            self._places.move_to_end(name)


def _runs(blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Of blocks, by their ends and places, those that are neighbours in both: from which token to which, the first
    place, and how many. Each is one copy.
    """
    at = 0
    for i, (end, place) in enumerate(blocks):
        if i + 1 == len(blocks) or blocks[i + 1] != (end + BLOCK, place + 1):
            count = i + 1 - at
            yield end - count * BLOCK, end, place + 1 - count, count
            at = i + 1


def _blocks(tokens: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Where each whole block ends, and its name."""
    name = b""
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        name = blake2b(name + array("q", tokens[end - BLOCK : end]).tobytes(), digest_size=16).digest()
        yield end, name
