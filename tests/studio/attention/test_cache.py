"""Decoding from a cache: each row as if it were alone, whatever else lies in the buffer."""

from __future__ import annotations

import pytest
import torch

from studio.attention import KVCache, attend
from studio.errors import UsageError


@pytest.mark.parametrize("heads", [2, 6])
def test_rows_of_unlike_lengths_are_each_as_if_alone(heads):
    cache = KVCache(3, 20, 2, 8)
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    k, v = torch.randn(3, 12, 2, 8), torch.randn(3, 12, 2, 8)
    cache.append(k, v, [12, 1, 5])
    more = torch.randn(3, 1, 2, 8)
    cache.append(more, more)
    assert cache.lengths == [13, 2, 6]
    q = torch.randn(3, 1, heads, 8)
    made = cache.attend(q)
    for row, n in enumerate([12, 1, 5]):
        own = [torch.cat([x[row : row + 1, :n], more[row : row + 1]], 1) for x in (k, v)]
        torch.testing.assert_close(made[row : row + 1], attend(q[row : row + 1], *own), atol=1e-6, rtol=1e-5)


def test_an_empty_row_gets_zeros_and_a_full_cache_is_told():
    cache = KVCache(2, 3, 1, 4)
    x = torch.randn(2, 3, 1, 4)
    cache.append(x, x, [0, 3])
    assert (cache.attend(torch.randn(2, 1, 1, 4))[0] == 0).all()
    with pytest.raises(UsageError, match=r"rows have \[0, 3\] tokens and get \[1, 1\] more; the capacity is 3"):
        cache.append(x[:, :1], x[:, :1])
    with pytest.raises(UsageError, match="decoding takes one token per row"):
        cache.attend(torch.randn(2, 2, 1, 4))
