"""The kernels for CUDA without a card: stubs that refuse what torch's checks refuse, and compute the formula.

The rules are those of torch's `sdp_utils.cpp` and of the kernels' own checks (2.13). `benchmarks/gpu.py` holds the same
table against a card. What a backend does not refuse it must serve, and rightly.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from studio.attention import Blocks, Causal, Dense, Lengths, Problem, SpaceTime
from studio.attention.backends import built_in, masks, sdpa, varlen
from studio.attention.dispatch import fixed_order
from studio.attention.plan import axes, box_cost

from .problems import BOUND, problems

BACKENDS = {backend.name: backend for backend in built_in()}
ON_CUDA = ("sdpa-flash", "sdpa-efficient", "sdpa-cudnn")
CUDA = torch.device("cuda", 0)
SHORT = (torch.float16, torch.bfloat16)


def check(q: Tensor, k: Tensor, v: Tensor, *, flash: bool) -> None:
    """What kernels raise on."""
    for each in (q, k, v):
        if each.stride(-1) != 1:
            raise RuntimeError("must have contiguous last dimension")
        if any(step % 8 for step in (*each.stride()[:-1], each.storage_offset())):
            raise RuntimeError("rows must be aligned to 16 bytes")
    if not q.shape[-1] == k.shape[-1] == v.shape[-1] or q.shape[-1] % 8:
        raise RuntimeError("head_dim")
    if flash and (q.shape[-1] > 256 or q.dtype not in SHORT):
        raise RuntimeError("FlashAttention only supports fp16 and bf16, head dimension at most 256")
    if not flash and q.shape[1] != k.shape[1]:
        raise RuntimeError("heads must be as many")


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, corner: bool) -> Tensor:
    q, k, v = q.double(), *(each.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask.double()
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        scores = scores.masked_fill(~seen.tril(k.shape[2] - q.shape[2] if corner else 0), -torch.inf)
    return torch.nan_to_num(scores.softmax(-1)) @ v


class Stubs:
    """In the place of `torch.ops.aten`."""

    def _scaled_dot_product_flash_attention(self, q, k, v, dropout, causal, debug, scale):
        check(q, k, v, flash=True)
        return (formula(q, k, v, None, causal, scale, True).to(q.dtype),)

    def _scaled_dot_product_efficient_attention(self, q, k, v, mask, grad, dropout, causal, scale):
        check(q, k, v, flash=False)
        if mask is not None and (k.shape[2] % 8 or mask.shape != (*q.shape[:3], k.shape[2])):
            raise RuntimeError("attn_bias")
        return (formula(q, k, v, mask, causal, scale, False).to(q.dtype),)

    def _scaled_dot_product_cudnn_attention(self, q, k, v, mask, grad, dropout, causal, debug, scale):
        check(q, k, v, flash=True)
        assert mask is None
        if causal and q.shape[2] != k.shape[2]:
            raise RuntimeError("causal needs a square")
        return (formula(q, k, v, None, causal, scale, False).to(q.dtype),)


@pytest.fixture(scope="module", autouse=True)
def card():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "_ops", Stubs())
        patch.setattr(sdpa, "_tried", lambda kernel, dtype, device: "")
        patch.setattr(
            sdpa, "materialized", lambda asked: masks.materialized(replace(asked, device=torch.device("cpu")))
        )
        patch.setattr("studio.attention.dispatch._is_hopper", lambda device: False)
        yield


def strange(x: Tensor, how: str) -> Tensor:
    """The same numbers in memory that lies otherwise."""
    if how == "heads apart":
        return x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)  # a head's numbers are not neighbours
    if how == "odd rows":
        wide = x.new_zeros(*x.shape[:3], x.shape[3] + 1)
        wide[..., 1:] = x
        return wide[..., 1:]
    return x


@given(problems(SHORT), st.sampled_from(["plain", "heads apart", "odd rows"]))
@settings(max_examples=60, deadline=None)
def test_what_is_not_refused_is_served_rightly(problem, how):
    q, k, v, bias = problem
    here = Problem.of(q, k, v, bias)
    due = BACKENDS["reference"].attend(q, k, v, here, 0.3)
    asked = replace(here, device=CUDA)
    for name in ON_CUDA:
        if here.empty or BACKENDS[name].refuses(asked):
            continue
        made = BACKENDS[name].attend(*(strange(each, how) for each in (q, k, v)), asked, 0.3)
        bound = BOUND[q.dtype]
        torch.testing.assert_close(made.float(), due.float(), atol=bound, rtol=bound)


def asked(bias=None, *, tokens=64, keys=None, dim=64, dtype=torch.bfloat16, heads=4, kv_heads=4):
    return Problem(1, tokens, keys or tokens, heads, kv_heads, dim, dim, dtype, CUDA, bias, False)


@pytest.mark.parametrize(
    ("problem", "serve"),
    [
        (asked(), ON_CUDA),
        (asked(dim=256), ON_CUDA),
        (asked(dim=512), ("sdpa-efficient",)),  # the one head in the middle of a stock VAE
        (asked(dim=36), ()),
        (asked(dtype=torch.float32), ("sdpa-efficient",)),
        (asked(Causal()), ON_CUDA),
        (asked(Causal(), keys=80), ("sdpa-flash", "sdpa-efficient")),  # the last query sees the last key
        (asked(Causal(offset=0), keys=80), ("sdpa-efficient",)),
        (asked(Causal(), keys=84), ("sdpa-flash",)),  # a mask needs a multiple of 8 keys
        (asked(Lengths([50])), ("sdpa-efficient",)),
        (asked(Dense(torch.zeros(64, 60, dtype=torch.bool)), keys=60), ()),
        (asked(kv_heads=2), ON_CUDA),
    ],
)
def test_the_table_of_kernels(problem, serve):
    assert tuple(name for name in ON_CUDA if not BACKENDS[name].refuses(problem)) == serve


def test_a_refusal_on_a_gpu_says_what_is_allowed():
    assert "head_dim is 512; on a GPU it must be at most 256" in BACKENDS["sdpa-flash"].refuses(asked(dim=512))
    assert "dtype is float32; on a GPU it needs float16 or bfloat16" in BACKENDS["sdpa-cudnn"].refuses(
        asked(dtype=torch.float32)
    )


def test_memory_that_ran_out_says_nothing_of_a_kernel(monkeypatch):
    monkeypatch.undo()
    calls = []

    def full(*_):
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            sdpa_tried(full, torch.float32, torch.device("cpu"))
    assert len(calls) == 2, "and it is tried again"


sdpa_tried = sdpa._tried


def test_windows_are_cut_by_the_prices_of_the_device():
    window = SpaceTime((16, 32, 32), (12, 8, 8))
    on_cpu, on_gpu = (
        [len(each) for each in axes(window, 8, box_cost(torch.device(device)))] for device in ("cpu", "cuda")
    )
    assert on_gpu[0] * on_gpu[1] * on_gpu[2] < 0.1 * on_cpu[0] * on_cpu[1] * on_cpu[2]


def test_few_tokens_in_a_window_take_one_launch_on_a_gpu():
    few, many = (
        asked(SpaceTime((4, 16, 16), (2, 8, 8)), tokens=1024),
        asked(SpaceTime((16, 32, 32), (4, 8, 8)), tokens=16384),
    )
    assert fixed_order(few, BACKENDS).index("sdpa-efficient") < fixed_order(few, BACKENDS).index("flex")
    assert fixed_order(many, BACKENDS)[0] == "flex"


def test_long_rows_go_to_cudnn_on_hopper(monkeypatch):
    monkeypatch.setattr("studio.attention.dispatch._is_hopper", lambda device: True)
    assert fixed_order(asked(tokens=4096), BACKENDS)[0] == "sdpa-cudnn"
    assert fixed_order(asked(tokens=256), BACKENDS)[0] == "sdpa-flash"


@pytest.mark.parametrize("bias", [Causal(window=5), Blocks([0, 10, 64]), Lengths([40])])
def test_masks_are_made_once_for_all_layers_and_steps(bias, monkeypatch):
    made = []
    meta = replace(asked(bias), device=torch.device("meta"))
    monkeypatch.setattr(masks, "_materialized", lambda problem, bias: made.append(bias) or torch.zeros(1, 1, 64, 64))
    first = masks.materialized(meta)
    assert (
        masks.materialized(replace(meta, bias=type(bias)(**vars(bias)) if isinstance(bias, Causal) else bias)) is first
    )
    assert len(made) == 1


def test_packed_sequences_are_one_launch(monkeypatch):
    import torch.nn.attention.varlen as kernels

    def varlen_attn(q, k, v, queries, keys, most_queries, most_keys, *, scale, enable_gqa):
        check(*(each[None].transpose(1, 2) for each in (q, k, v)), flash=True)
        assert queries.dtype == keys.dtype == torch.int32
        assert (most_queries, most_keys) == (int(queries.diff().max()), int(keys.diff().max()))
        assert enable_gqa == (q.shape[1] != k.shape[1])
        made = [
            formula(*(x[None, a:b].transpose(1, 2) for x, a, b in ((q, *at), (k, *to), (v, *to))), None, False, scale,
                    False).transpose(1, 2)[0]
            for at, to in zip(pairwise(queries), pairwise(keys), strict=True)
        ]  # fmt: skip
        return torch.cat(made).to(q.dtype)

    monkeypatch.setattr(kernels, "varlen_attn", varlen_attn)
    monkeypatch.setitem(varlen.KERNELS, "cpu", varlen.KERNELS["cuda"])
    q, k, v = (torch.randn(1, n, heads, 64, dtype=torch.bfloat16) for n, heads in ((30, 4), (45, 2), (45, 2)))
    here = Problem.of(q, k, v, Blocks([0, 3, 20, 20, 30], [0, 9, 10, 12, 45]))
    assert BACKENDS["varlen"].refuses(here) == []
    for how in ("plain", "heads apart"):
        made = BACKENDS["varlen"].attend(*(strange(each, how) for each in (q, k, v)), here, 0.3)
        due = BACKENDS["reference"].attend(q, k, v, here, 0.3)
        torch.testing.assert_close(made.float(), due.float(), atol=BOUND[q.dtype], rtol=BOUND[q.dtype])


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (asked(Blocks([0, 9, 64])), "torch finds no GPU"),
        (replace(asked(Blocks([0, 9, 64])), device=torch.device("cpu")), "there is no such kernel for cpu"),
        (asked(Causal()), "it supports only Blocks"),
        (asked(Blocks([0, 9, 64], [0, 0, 64])), "a sequence has queries and no keys"),
        (replace(asked(Blocks([0, 9, 64])), grad=True), "it has no backward pass here"),
        (replace(asked(Blocks([0, 9, 64])), value_dim=32), "value head_dim 32 != key head_dim 64"),
    ],
)
def test_what_packed_sequences_need(problem, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert words in "; ".join(BACKENDS["varlen"].refuses(problem))
    assert (fixed_order(problem, BACKENDS)[0] == "varlen") == isinstance(problem.bias, Blocks)


def test_a_single_row_at_an_odd_place_is_copied():
    odd = strange(torch.randn(1, 1, 1, 8, dtype=torch.float16), "odd rows")
    [made] = sdpa.neighbours(odd)
    check(made, made, made, flash=True)
    assert torch.equal(made, odd)
