"""What each backend refuses, and that ``studio doctor`` tells the same."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from studio.attention import Blocks, Causal, Dense, Problem, SpaceTime, availability
from studio.attention.backend import BUILT_IN
from studio.attention.backends import built_in
from studio.attention.backends.xformers import mask_of

BACKENDS = {backend.name: backend for backend in built_in()}


def problem(bias=None, *, batch=1, tokens=64, heads=2, dim=64, dtype=torch.float32, grad=False):
    return Problem(batch, tokens, tokens, heads, heads, dim, dim, dtype, torch.device("cpu"), bias, grad)


def test_every_backend_works_or_says_why_not():
    found = {each.name: each for each in availability("cpu")}
    assert set(found) == set(BACKENDS) == set(BUILT_IN)
    assert found["sdpa-math"].available
    assert found["sdpa-flash"].available
    assert found["chunked"].available
    for each in found.values():
        assert each.available == (each.reason == "")
        assert "\n" not in each.reason


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("sdpa-cudnn", problem(), "torch has no such kernel for the CPU"),
        ("sdpa-efficient", problem(), "torch has no such kernel for the CPU"),
        ("sdpa-flash", problem(Causal(window=9), tokens=8192), "a mask of 256 MiB; the limit is 64 MiB"),
        ("sdpa-flash", problem(Dense(torch.zeros(64, 64, requires_grad=True))), "no gradient for the bias's tensor"),
        ("chunked", problem(Dense(torch.zeros(64, 64, requires_grad=True))), "no gradient for the bias's tensor"),
        ("sdpa-math", problem(tokens=16384, heads=8), "8,192 MiB for the scores"),
        ("reference", problem(tokens=16384, heads=8), "8,192 MiB for the scores"),
        ("flex", problem(grad=True), "no backward pass"),
        ("flex", problem(Dense(torch.zeros(64, 64))), "Dense cannot be a block mask"),
        ("flex", problem(dtype=torch.float64), "not support float64"),
        ("xformers", problem(SpaceTime((4, 4, 4), (2, 2, 2))), "it supports Causal and Blocks, not SpaceTime"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_how_much_is_allowed(name, asked, words):
    assert words in "; ".join(BACKENDS[name].refuses(asked))


@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")
@pytest.mark.parametrize("bias", [Causal(), Causal(window=5), Blocks([0, 10, 10, 64])])
def test_xformers_own_description_allows_the_same_pairs(bias):
    asked = problem(bias)
    at = torch.arange(64)
    seen = bias.visible(slice(0, 1), at, at, asked.shape)
    assert torch.equal(mask_of(asked).materialize((64, 64)) == 0, seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # by what torch.compile imports
@pytest.mark.parametrize(
    "bias", [None, Causal(), Causal(7, -3), Blocks([0, 50, 300]), SpaceTime((3, 10, 10), (1, 4, 4), (1, 2, 2))]
)
def test_flex_gives_the_same_answer(bias):
    q, k, v = (torch.randn(1, 300, heads, 16) for heads in (4, 2, 2))
    asked = Problem.of(q, k, v, bias)
    if refused := BACKENDS["flex"].refuses(asked):
        pytest.skip("; ".join(refused))
    made, due = (BACKENDS[name].attend(q, k, v, asked, 0.25) for name in ("flex", "reference"))
    torch.testing.assert_close(made, due, atol=1e-5, rtol=1e-5)
