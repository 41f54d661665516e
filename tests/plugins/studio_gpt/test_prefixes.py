"""Beginnings of prompts: what is taken is what was kept for the same tokens, whatever came between."""

from __future__ import annotations

from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.testing.fake_gpu import FakeGpu
from studio_gpt.cache import Cache
from studio_gpt.model import llama
from studio_gpt.prefixes import BLOCK, Prefixes

CONFIG = llama(vocab=9, context=5 * BLOCK, layers=2, heads=1, width=2)
CPU = torch.device("cpu")


def computed(tokens: list[int]) -> torch.Tensor:
    """Keys and values that tell all tokens before: (layers, 2, tokens, 1, 2)."""
    told = [float(crc32(bytes(tokens[: i + 1])) % 9973) for i in range(len(tokens))]
    return torch.tensor(told)[None, None, :, None, None] * torch.arange(1, 9).view(2, 2, 1, 1, 2)


TEXTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 7 * BLOCK)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(texts=TEXTS, begin=st.sampled_from([0, BLOCK, 2 * BLOCK]))
def test_what_is_taken_is_what_was_kept(texts: list[tuple[int, int, int]], begin: int) -> None:
    prefixes = Prefixes(CONFIG, torch.float32, CPU)
    for first, then, count in texts:
        tokens = ([first] * 40 + [then] * 7 * BLOCK)[:count]
        cache, hits = Cache(CONFIG, count, torch.float32, CPU), prefixes.hits
        cache.kv.fill_(torch.nan)
        known = prefixes.take(tokens, cache, 0)
        assert known == (prefixes.hits - hits) * BLOCK < max(count, 1)
        assert torch.equal(cache.kv[:, :, :known], computed(tokens)[:, :, :known])
        cache.kv.copy_(computed(tokens))
        prefixes.keep(tokens, cache, min(begin, count), count)
        again = Cache(CONFIG, count, torch.float32, CPU)
        if begin == 0:  # all blocks but that of the last token are there, as far as there is room
            assert prefixes.take(tokens, again, 0) == min((count - 1) // BLOCK, 5) * BLOCK


def test_neighbouring_blocks_are_one_copy() -> None:
    with FakeGpu.installed() as gpu, torch.no_grad():
        device = torch.device("gpu:0")
        prefixes = Prefixes(CONFIG, torch.float32, device)
        tokens, cache = [1] * (4 * BLOCK + 1), Cache(CONFIG, 4 * BLOCK + 1, torch.float32, device)
        for move in (lambda: prefixes.keep(tokens, cache, 0, len(tokens)), lambda: prefixes.take(tokens, cache, 0)):
            with gpu.counting() as counts:
                move()
            assert (counts.launched, counts.waited) == (1, 0)


def test_of_a_text_that_is_read_in_pieces_and_is_too_long_the_beginning_stays() -> None:
    prefixes, tokens = Prefixes(CONFIG, torch.float32, CPU), [1] * (9 * BLOCK)
    cache = Cache(CONFIG, len(tokens), torch.float32, CPU)
    for begin in range(0, len(tokens), 2 * BLOCK):
        prefixes.keep(tokens, cache, begin, min(begin + 2 * BLOCK, len(tokens)))
    assert prefixes.take(tokens, cache, 0) == 5 * BLOCK


@pytest.mark.parametrize("known", [1, BLOCK - 1])
def test_within_a_block_nothing_is_taken(known: int) -> None:
    prefixes, tokens = Prefixes(CONFIG, torch.float32, CPU), [1] * 4 * BLOCK
    cache = Cache(CONFIG, len(tokens), torch.float32, CPU)
    prefixes.keep(tokens, cache, 0, len(tokens))
    assert prefixes.take(tokens, cache, known) == known
