"""Descriptions: what they allow against slow loops, what fits, and that plans skip nothing that is seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from studio.attention import Blocks, Causal, Dense, Lengths, Problem, SpaceTime
from studio.attention.bias import AttentionShape
from studio.attention.plan import blocks, grids
from studio.errors import UsageError

from .problems import problems, windows


def allowed(bias, batch, queries, keys, heads=1):
    shape = AttentionShape(batch, heads, queries, keys)
    bias.check(shape)
    seen = bias.visible(slice(0, batch), torch.arange(queries), torch.arange(keys), shape)
    return seen.expand(batch, heads, queries, keys)[:, 0]


def test_causal_counts_from_the_bottom_right_corner_or_its_offset():
    assert allowed(Causal(), 1, 2, 4)[0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert allowed(Causal(offset=0), 1, 2, 4)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert allowed(Causal(window=2), 1, 3, 3)[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_lengths_and_blocks():
    assert allowed(Lengths([1, 2]), 2, 1, 3).int().tolist() == [[[1, 0, 0]], [[1, 1, 0]]]
    assert allowed(Lengths(torch.tensor([2]), [1]), 1, 2, 3)[0].int().tolist() == [[1, 1, 0], [0, 0, 0]]
    assert allowed(Blocks([0, 1, 1, 3]), 1, 3, 3)[0].int().tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


@settings(max_examples=40)
@given(windows())
def test_a_window_is_what_a_slow_loop_says(drawn):
    bias, tokens = drawn
    (_, height, width), tile = bias.grid, bias.tile or (1, 1, 1)
    due = torch.zeros(tokens, tokens, dtype=torch.bool)

    def at(token):
        return token // (height * width), token // width % height, token % width

    for i in range(tokens):
        for j in range(tokens):
            near = True
            for q, k, n, w, t in zip(at(i), at(j), bias.grid, bias.window, tile, strict=True):
                tiles, wide = -(-n // t), w // t
                first = min(max(q // t - wide // 2, 0), tiles - wide)
                near = near and first <= k // t < first + wide
            due[i, j] = near
    assert torch.equal(allowed(bias, 1, tokens, tokens)[0], due)
    assert bias.density == pytest.approx(due.float().mean().item())


@settings(max_examples=150)
@given(problems())
def test_a_plan_has_every_allowed_pair_once_and_no_other(problem):
    q, k, v, bias = problem
    shape = Problem.of(q, k, v, bias).shape
    found = torch.zeros(shape, dtype=torch.int64)
    grid_q, grid_k = grids(bias, shape)
    for block in blocks(bias, shape, q.device):
        at_q = torch.arange(shape.queries).view(grid_q)[block.q].flatten()
        at_k = torch.arange(shape.keys).view(grid_k)[block.k].flatten()
        seen = torch.ones(len(at_q), len(at_k)) if block.visible is None else block.visible
        part = found[block.rows]
        part[:, :, at_q[:, None], at_k] += seen.expand(part.shape[0], shape.heads, len(at_q), len(at_k)).long()
    at = torch.arange(shape.queries), torch.arange(shape.keys)
    due = torch.ones(1, 1, 1, 1) if bias is None else bias.visible(slice(0, shape.batch), *at, shape)
    assert torch.equal(found, due.expand(shape).long())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Causal(window=0), "window is 0; it must be at least 1"),
        (lambda: Causal(offset=1.5), "offset is 1.5; it must be a whole number"),
        (lambda: Lengths([1.5]), r"keys is \[1.5\]; it must be a sequence of whole numbers"),
        (lambda: Blocks([1, 2]), r"cu_seqlens is \(1, 2\); it must begin with 0 and never decrease"),
        (lambda: Blocks([0, 3, 2]), "never decrease"),
        (lambda: Blocks([0, 3], [0, 1, 3]), "their numbers must match"),
        (lambda: SpaceTime((4, 4), (1, 1)), r"it must be \(t, h, w\), whole numbers of at least 1"),
        (
            lambda: SpaceTime((4, 4, 4), (5, 1, 1)),
            "window is 5 along t; it must not be larger than the grid, which has 4",
        ),
        (lambda: SpaceTime((4, 4, 4), (3, 2, 2), (2, 2, 2)), "3 along t; it must be a multiple of the tile's 2"),
        (lambda: Dense(torch.zeros(2, 2, dtype=torch.int64)), "tensor is int64; it must be bool or floating point"),
        (lambda: Dense(torch.zeros(1, 1, 1, 2, 2)), "5 dimensions; it must have at most 4"),
    ],
)
def test_a_wrong_description_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (Lengths([3]), "Lengths has 1 values for keys; it must have one per row, 2"),
        (Lengths([3, 9]), "Lengths has 9 keys; it must be from 0 to 4"),
        (Lengths([3, -1]), "Lengths has -1 keys"),
        (Lengths([3, 3], [3, 5]), "Lengths has 5 queries; it must be from 0 to 4"),
        (Blocks([0, 4]), "Blocks needs all sequences packed into one row; the batch has 2"),
        (SpaceTime((2, 2, 2), (1, 1, 1)), "has 8 positions; there are 4 queries and 4 keys"),
        (
            Dense(torch.zeros(3, 4)),
            r"is \(3, 4\); it must broadcast to \(batch, heads, queries, keys\) = \(2, 2, 4, 4\)",
        ),
        (Causal() + Lengths([3]), "Lengths has 1 values for keys"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(bias, words):
    x = torch.zeros(2, 4, 2, 8)
    with pytest.raises(UsageError, match=words):
        Problem.of(x, x, x, bias)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([500, 512, 505], [(0, 3)]),
        ([40, 4000, 3990, 20], [(0, 1), (1, 3), (3, 4)]),
        ([0, 0, 9000], [(2, 3)]),
        ([600, 600, 9000, 9000], [(0, 2), (2, 4)]),
    ],
)
def test_neighbouring_rows_share_a_block_where_padding_is_cheaper_than_another(lengths, rows):
    shape = AttentionShape(len(lengths), 8, 1, 9000)
    found = list(blocks(Lengths(lengths), shape, torch.device("cpu")))
    assert [(block.rows.start, block.rows.stop) for block in found] == rows
    assert [block.k[0].stop for block in found] == [max(lengths[slice(*each)]) for each in rows]
