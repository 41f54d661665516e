"""Attention over spans of a pool: by gathering against each request alone, and the rules of the kernel for CUDA."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen

from studio.attention import Causal, Spans, attend, attend_spans, record_backends, spans

REQUESTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=5)


def drawn(requests, heads: int, kv_heads: int, seed: int, dim: int = 8) -> tuple[Tensor, Tensor, Tensor, Spans]:
    """Queries, a pool that is NaN outside of spans, and spans in turned order with gaps between them."""
    draws = torch.Generator().manual_seed(seed)
    begins, at = [], 3
    for queries, before, gap in reversed(requests):
        begins.insert(0, at)
        at += queries + before + gap
    k, v = (torch.full((at + 2, kv_heads, dim), torch.nan) for _ in range(2))
    used = [queries + before for queries, before, _ in requests]
    for begin, n in zip(begins, used, strict=True):
        k[begin : begin + n], v[begin : begin + n] = torch.randn(2, n, kv_heads, dim, generator=draws)
    ends = torch.tensor([0, *(queries for queries, _, _ in requests)]).cumsum(0)
    q = torch.randn(int(ends[-1]), heads, dim, generator=draws)
    ints = (torch.as_tensor(each, dtype=torch.int32) for each in (ends, [*begins, 0], used))
    return q, k, v, Spans(*ints, max(queries for queries, _, _ in requests), max(used) + 3)


def alone(q: Tensor, k: Tensor, v: Tensor, given: Spans, window: int | None) -> Tensor:
    made = []
    for i, (begin, n) in enumerate(zip(given.begins.tolist(), given.used.tolist(), strict=False)):
        rows, keys = q[given.ends[i] : given.ends[i + 1]], slice(begin, begin + n)
        causal = torch.nn.functional.pad(rows, (0, 0, 0, 0, n - len(rows), 0))  # "causal" counts from the top left
        made.append(attend(causal[None], k[None, keys], v[None, keys], bias=Causal(window=window))[0, -len(rows) :])
    return torch.cat(made)


@given(requests=REQUESTS, heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]), window=st.sampled_from([None, 1, 4]),
       seed=st.integers(0, 99))  # fmt: skip
def test_gathered_it_is_what_each_gets_alone(requests, heads, window, seed) -> None:
    q, k, v, given = drawn(requests, *heads, seed)
    torch.testing.assert_close(attend_spans(q, k, v, given, window), alone(q, k, v, given, window))


def by_rows(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, begins: Tensor, most_q: int, most_k: int, *, scale: float,
    window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor,
) -> Tensor:  # fmt: skip
    """What stands for torch's varlen_attn: its checks, and each request alone."""
    assert ends.dtype == begins.dtype == seqused_k.dtype == torch.int32
    assert len(ends) == len(begins) == len(seqused_k) + 1
    assert max(ends.diff().tolist()) <= most_q
    assert max(seqused_k.tolist()) <= most_k
    assert window_size[1] == 0
    assert enable_gqa or q.shape[1] == k.shape[1]
    assert scale == pytest.approx(q.shape[2] ** -0.5)
    window = None if window_size[0] == -1 else window_size[0] + 1
    return alone(q, k, v, Spans(ends, begins, seqused_k, most_q, most_k), window)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_the_kernel_for_cuda_is_given_what_it_checks(monkeypatch, window, heads) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", by_rows)
    monkeypatch.setitem(spans.KERNELS, "cpu", spans._varlen)
    q, k, v, given = drawn([(1, 7, 1), (3, 0, 2), (2, 5, 0)], *heads, 1)
    with record_backends() as used:
        got = attend_spans(q, k, v, given, window)
    assert spans.NAME in used
    torch.testing.assert_close(got, alone(q, k, v, given, window))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "why"),
    [
        (torch.float32, 64, (9, 0), "dtype is float32; it needs float16 or bfloat16"),
        (torch.bfloat16, 20, (9, 0), "head_dim is 20; it must be a multiple of 8 up to 256"),
        (torch.bfloat16, 512, (9, 0), "head_dim is 512"),
        (torch.float16, 64, (7, 5), "it needs compute capability 8.0"),
        (torch.bfloat16, 64, (8, 0), ""),
    ],
)
def test_the_kernel_for_cuda_is_taken_where_it_serves(monkeypatch, dtype, head_dim, capability, why) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(spans, "_tried", lambda *asked: "")
    spans._why_not_cuda.cache_clear()
    found = spans.why_not(dtype, torch.device("cuda:0"), head_dim)
    assert found.startswith(why)
    assert bool(found) == bool(why)
    spans._why_not_cuda.cache_clear()


def test_a_torch_without_the_arguments_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, window_size: q)
    spans._why_not_cuda.cache_clear()
    assert "has no `enable_gqa`" in spans.why_not(torch.float16, torch.device("cuda:0"), 64)
    spans._why_not_cuda.cache_clear()


def test_a_kernel_that_fails_or_answers_wrongly_is_not_taken(monkeypatch) -> None:
    def raises(*given: object) -> Tensor:
        raise RuntimeError("seqused_k is not supported\nand more")

    def packed(q: Tensor, k: Tensor, v: Tensor, given: Spans, window: int | None, scale: float) -> Tensor:
        return spans._gathered(q, k, v, Spans(given.ends, given.begins * 0, given.used, 3, 64), window)

    tried = partial(spans._tried, torch.float32, torch.device("cpu"), 16)
    monkeypatch.setattr(varlen, "varlen_attn", by_rows)
    for kernel, why in (
        (spans._varlen, ""),
        (raises, "seqused_k is not supported"),
        (packed, "its outputs are off by"),
    ):
        monkeypatch.setitem(spans.KERNELS, "cpu", kernel)
        assert tried().startswith(why)
        assert bool(tried()) == bool(why)
