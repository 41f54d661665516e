"""Every backend against `reference` in float64: answers, gradients, and what is not finite."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.attention import Blocks, Causal, Dense, Dispatch, Lengths, Problem, SpaceTime
from studio.attention.plan import blocks

from .problems import BOUND, problems

DISPATCH = Dispatch()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def exact(q, k, v, bias):
    return DISPATCH.attend(*(each.double() for each in (q, k, v)), bias=bias, backend="reference")


def willing(q, k, v, bias):
    """Backends that serve it, but for what takes seconds to compile."""
    refused = DISPATCH.explain(Problem.of(q, k, v, bias))
    return [name for name, reasons in refused.items() if not reasons and name != "flex"]


def moved(device, q, k, v, bias):
    if isinstance(bias, Dense):
        bias = Dense(bias.tensor.to(device))
    return q.to(device), k.to(device), v.to(device), bias


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150)
@given(problems())
def test_every_backend_gives_the_same_answer(device, problem):
    if device == "cuda" and len(getattr(problem[3], "parts", ())) > 1:
        return
    q, k, v, bias = moved(device, *problem)
    due = exact(q, k, v, bias)
    names = willing(q, k, v, bias)
    assert {"reference", "chunked"} <= set(names)
    for name in ["auto", *names]:
        made = DISPATCH.attend(q, k, v, bias=bias, backend=name)
        assert made.shape == due.shape
        assert made.dtype == q.dtype
        torch.testing.assert_close(
            made.double(), due, atol=BOUND[q.dtype], rtol=BOUND[q.dtype], msg=partial("{}: {}".format, name)
        )


@pytest.mark.parametrize("bias", [None, Causal(), Causal(window=3)])
def test_numbers_of_a_head_need_not_be_neighbours(bias):
    q, k, v = (torch.randn(1, 4, 16, 8).permute(0, 3, 1, 2) for _ in range(3))  # (1, 8, 4, 16), tokens innermost
    due = exact(q, k, v, bias)
    for name in willing(q, k, v, bias):
        made = DISPATCH.attend(q, k, v, bias=bias, backend=name)
        torch.testing.assert_close(made.double(), due, atol=1e-5, rtol=1e-5, msg=partial("{}: {}".format, name))


@settings(max_examples=60)
@given(problems(dtypes=(torch.float64, torch.float32, torch.bfloat16)))
def test_every_backend_gives_the_same_gradients(problem):
    q, k, v, bias = problem
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(0))

    def gradients(name, dtype):
        leaves = [each.to(dtype).clone().requires_grad_() for each in (q, k, v)]
        out = DISPATCH.attend(*leaves, bias=bias, backend=name)
        (out.to(weights.dtype) * weights).sum().backward()
        return [each.grad for each in leaves]

    due = gradients("reference", torch.float64)
    names = willing(*(each.clone().requires_grad_() for each in (q, k, v)), bias)
    assert "chunked" in names
    for name in names:
        bound = 8 * BOUND[q.dtype]
        for made, right in zip(gradients(name, q.dtype), due, strict=True):
            torch.testing.assert_close(made.double(), right, atol=bound, rtol=bound, msg=partial("{}: {}".format, name))


def test_a_trained_bias_gets_its_gradient():
    q, k, v = (torch.randn(1, 6, 2, 8) for _ in range(3))
    tensor = torch.randn(6, 6, requires_grad=True)
    DISPATCH.attend(q, k, v, bias=Dense(tensor)).square().sum().backward()
    made, tensor.grad = tensor.grad.clone(), None
    DISPATCH.attend(q, k, v, bias=Dense(tensor), backend="reference").square().sum().backward()
    torch.testing.assert_close(made, tensor.grad)


BIASES = {
    "none": None,
    "causal": Causal(window=5),
    "lengths": Lengths([7]),
    "blocks": Blocks([0, 4, 12]),
    "tiles": SpaceTime((3, 2, 2), (2, 2, 1), (1, 2, 1)),
    "window": SpaceTime((3, 2, 2), (1, 2, 1)),
    "dense": Dense(torch.arange(144).view(12, 12) % 3 != 0),
    "sum": Causal() + Lengths([9]),
}
BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@settings(max_examples=12)
@given(bad=st.sampled_from(BAD), which=st.integers(0, 2), token=st.integers(0, 11), seed=st.integers(0, 99))
def test_what_is_not_finite_reaches_those_alone_that_see_it(bias, bad, which, token, seed):
    rng = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(1, 12, 2, 8, generator=rng) for _ in range(3)]
    clean = DISPATCH.attend(*tensors, bias=bias, backend="reference")
    tensors[which][0, token, 1, 3] = bad
    at = torch.arange(12)
    problem = Problem.of(*tensors, bias)
    seen = bias.visible(slice(0, 1), at, at, problem.shape) if bias else torch.ones(12, 12, dtype=torch.bool)
    seen = seen.expand(1, 1, 12, 12)[0, 0]
    touched = (at == token) if which == 0 else seen[:, token]
    due = DISPATCH.attend(*tensors, bias=bias, backend="reference")
    torch.testing.assert_close(due[:, ~touched], clean[:, ~touched])
    torch.testing.assert_close(due[:, :, 0], clean[:, :, 0])  # the other head knows nothing of it
    if which == 2:
        assert due[0, touched, 1, 3].isnan().all()
    for name in willing(*tensors, bias):
        made = DISPATCH.attend(*tensors, bias=bias, backend=name)
        torch.testing.assert_close(made, due, equal_nan=True, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("bias", [None, Causal()])
@settings(max_examples=25)
@given(keys=st.integers(1, 40), bad=st.sampled_from(BAD))
def test_a_query_that_is_not_finite_is_never_answered_with_numbers(dtype, bias, keys, bad):
    """torch's own flash kernel answers it with zeros at fewer than 16 keys, and nothing in its answer tells of it."""
    q, k, v = (torch.randn(1, keys, 2, 8).to(dtype) for _ in range(3))
    q[0, keys // 2, 1] = bad
    for name in willing(q, k, v, bias):
        made = DISPATCH.attend(q, k, v, bias=bias, backend=name)
        assert made[0, keys // 2, 1].isnan().all(), name
        assert made[0, :, 0].isfinite().all(), name


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-math", "chunked", "reference", "auto"])
def test_who_sees_nothing_gets_zeros_and_zero_gradients(name):
    q, k, v = (torch.randn(2, 9, 2, 8, requires_grad=True) for _ in range(3))
    out = DISPATCH.attend(q, k, v, bias=Lengths([0, 4]) + Causal(offset=-3), backend=name)
    assert (out[0] == 0).all()
    assert (out[1, :3] == 0).all()
    assert (out[1, 3:] != 0).any()
    out.sum().backward()
    assert all(each.grad.isfinite().all() for each in (q, k, v))
    assert (q.grad[0] == 0).all()


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-math", "chunked", "reference", "auto"])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 3), (2, 0, 3), (2, 3, 0), (2, 0, 0)])
def test_nothing_to_compute_is_zeros(name, batch, queries, keys):
    q = torch.randn(batch, queries, 4, 8, requires_grad=True)
    k = torch.randn(batch, keys, 2, 8)
    out = DISPATCH.attend(q, k, k, backend=name)
    assert out.shape == q.shape
    assert (out == 0).all()
    out.sum().backward()
    assert (q.grad == 0).all()


@pytest.mark.parametrize("name", ["sdpa-math", "chunked", "reference", "auto"])
def test_values_may_have_another_size(name):
    q, k, v = torch.randn(2, 7, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 5)
    due = exact(q, k, v, Causal())
    made = DISPATCH.attend(q, k, v, bias=Causal(), backend=name)
    assert made.shape == (2, 7, 4, 5)
    torch.testing.assert_close(made.double(), due, atol=1e-5, rtol=1e-5)


def test_a_scale_is_used():
    q, k, v = (torch.randn(1, 5, 1, 8) for _ in range(3))
    torch.testing.assert_close(DISPATCH.attend(q, k, v, scale=0.0), v.mean(1, keepdim=True).expand_as(v))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("more", [None, Lengths([700, 864])], ids=["alone", "lengths"])
@pytest.mark.parametrize("tile", [None, (3, 2, 2)], ids=["plain", "tiles"])
def test_windows_of_many_boxes_give_the_same(tile, more, grad):
    """Large enough to be cut along all axes: boxes share copies of keys, and masks."""
    window = SpaceTime((6, 12, 12), (3, 4, 4), tile)
    bias = window if more is None else window + more
    q, k, v = (torch.randn(2, 864, heads, 8, requires_grad=grad) for heads in (16, 8, 8))
    cut = list(blocks(bias, Problem.of(q, k, v, bias).shape, q.device))
    assert len(cut) > 8
    assert len({str(block.k[1:]) for block in cut}) < len(cut), "boxes of one area"
    made, due = (DISPATCH.attend(q, k, v, bias=bias, backend=name) for name in ("chunked", "reference"))
    torch.testing.assert_close(made, due, atol=1e-5, rtol=1e-5)
    if grad:
        weights = torch.randn_like(due)
        one, other = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (made, due))
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
