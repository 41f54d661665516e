"""The prefix cache: the loaded blocks are those stored for the same tokens, whatever came between."""

from __future__ import annotations

from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.testing.fake_gpu import FakeGpu
from studio_gpt.config import llama
from studio_gpt.kv_cache import ContiguousKVCache
from studio_gpt.prefix_cache import BLOCK, PrefixCache

CONFIG = llama(vocab=9, context=5 * BLOCK, layers=2, heads=1, width=2)
CPU = torch.device("cpu")


def computed(tokens: list[int]) -> torch.Tensor:
    """Keys and values that tell all tokens before: (layers, 2, tokens, 1, 2)."""
    told = [float(crc32(bytes(tokens[: i + 1])) % 9973) for i in range(len(tokens))]
    return torch.tensor(told)[None, None, :, None, None] * torch.arange(1, 9).view(2, 2, 1, 1, 2)


TEXTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 7 * BLOCK)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(texts=TEXTS, begin=st.sampled_from([0, BLOCK, 2 * BLOCK]))
def test_loaded_blocks_are_those_that_were_stored(texts: list[tuple[int, int, int]], begin: int) -> None:
    prefix_cache = PrefixCache(CONFIG, torch.float32, CPU)
    for first, then, count in texts:
        tokens = ([first] * 40 + [then] * 7 * BLOCK)[:count]
        cache, hits = ContiguousKVCache(CONFIG, count, torch.float32, CPU), prefix_cache.hits
        cache.kv.fill_(torch.nan)
        num_computed = prefix_cache.load(tokens, cache, 0)
        assert num_computed == (prefix_cache.hits - hits) * BLOCK < max(count, 1)
        assert torch.equal(cache.kv[:, :, :num_computed], computed(tokens)[:, :, :num_computed])
        cache.kv.copy_(computed(tokens))
        prefix_cache.store(tokens, cache, min(begin, count), count)
        again = ContiguousKVCache(CONFIG, count, torch.float32, CPU)
        if begin == 0:  # all blocks but that of the last token are there, as far as there is room
            assert prefix_cache.load(tokens, again, 0) == min((count - 1) // BLOCK, 5) * BLOCK


def test_adjacent_blocks_are_one_copy() -> None:
    with FakeGpu.installed() as gpu, torch.no_grad():
        device = torch.device("gpu:0")
        prefix_cache = PrefixCache(CONFIG, torch.float32, device)
        tokens, cache = [1] * (4 * BLOCK + 1), ContiguousKVCache(CONFIG, 4 * BLOCK + 1, torch.float32, device)
        moves = (lambda: prefix_cache.store(tokens, cache, 0, len(tokens)), lambda: prefix_cache.load(tokens, cache, 0))
        for move in moves:
            with gpu.counting() as counts:
                move()
            assert (counts.launched, counts.waited) == (1, 0)


def test_of_a_long_text_in_chunks_the_beginning_stays() -> None:
    prefix_cache, tokens = PrefixCache(CONFIG, torch.float32, CPU), [1] * (9 * BLOCK)
    cache = ContiguousKVCache(CONFIG, len(tokens), torch.float32, CPU)
    for begin in range(0, len(tokens), 2 * BLOCK):
        prefix_cache.store(tokens, cache, begin, min(begin + 2 * BLOCK, len(tokens)))
    assert prefix_cache.load(tokens, cache, 0) == 5 * BLOCK


@pytest.mark.parametrize("num_computed", [1, BLOCK - 1])
def test_nothing_is_loaded_within_a_block(num_computed: int) -> None:
    prefix_cache, tokens = PrefixCache(CONFIG, torch.float32, CPU), [1] * 4 * BLOCK
    cache = ContiguousKVCache(CONFIG, len(tokens), torch.float32, CPU)
    prefix_cache.store(tokens, cache, 0, len(tokens))
    assert prefix_cache.load(tokens, cache, num_computed) == num_computed
