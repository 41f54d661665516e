"""Beginnings of prompts, computed once: keys and values of the last blocks of tokens, for requests that begin alike.

A block is `BLOCK` tokens; its name is a hash of all tokens up to its end, so that a block is found only behind the same
beginning. There is room for a fixed number, made at once so that it is counted with the model's weights; the block that
was used longest ago makes place. This module knows nothing of requests.

Try it: ``pytest tests/plugins/studio_gpt/test_text.py``
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
        self.hits = 0  # blocks that needed no computing

    def take(self, tokens: Sequence[int], cache: Held, known: int) -> int:
        """Copy what is known of the tokens behind the first `known` into the cache; how many are known then.

        The last token is never among them, since its logits are wanted. A beginning within a block takes nothing.
        """
        if known % BLOCK:
            return known
        for end, name in _blocks(tokens):
            if end <= known:
                continue
            if name not in self._places or end >= len(tokens):
                break
            self._places.move_to_end(name)
            cache.kv[:, :, known:end] = self.kv[self._places[name]]
            self.hits += 1
            known = end
        return known

    def keep(self, tokens: Sequence[int], cache: Held, begin: int, end: int) -> None:
        """Keep the blocks of the cache that end behind `begin` and not behind `end`."""
        if not len(self.kv):
            return
        for stop, name in _blocks(tokens[:end]):
            if stop <= begin or name in self._places:
                continue
            full = len(self._places) == len(self.kv)
            place = self._places.popitem(last=False)[1] if full else len(self._places)
            self.kv[place] = cache.kv[:, :, stop - BLOCK : stop]
            self._places[name] = place


def _blocks(tokens: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Where each whole block ends, and its name."""
    name = b""
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        name = blake2b(name + array("q", tokens[end - BLOCK : end]).tobytes(), digest_size=16).digest()
        yield end, name
