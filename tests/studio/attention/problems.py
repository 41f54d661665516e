"""Draw problems for the property tests: shapes, heads and every description, alone and in sums."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from studio.attention import Blocks, Causal, Dense, Lengths, SpaceTime

BOUND = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


@st.composite
def problems(draw, dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16)):
    """(q, k, v, bias) with one to three kinds of bias, or none."""
    kinds = draw(st.sampled_from(["none", "causal", "lengths", "blocks", "window", "tiles", "dense", "sum"]))
    batch, heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    dim = draw(st.sampled_from([8, 16, 24]))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if kinds == "blocks":
        batch = 1
    if kinds in ("window", "tiles") or (kinds == "sum" and draw(st.booleans())):
        bias, queries = draw(windows())
        keys = queries
        if kinds == "sum":
            bias = bias + draw(st.sampled_from([Causal(), Lengths([keys // 2 + 1] * batch)]))
    elif kinds == "sum":
        bias = draw(plain("lengths", batch, queries, keys, rng)) + draw(plain("causal", batch, queries, keys, rng))
        bias = bias + draw(plain("dense", batch, queries, keys, rng))
    else:
        bias = None if kinds == "none" else draw(plain(kinds, batch, queries, keys, rng))
    dtype = draw(st.sampled_from(dtypes))
    shapes = [(batch, queries, heads * groups, dim), (batch, keys, heads, dim), (batch, keys, heads, dim)]
    q, k, v = (torch.randn(shape, generator=rng).to(dtype) for shape in shapes)
    return q, k, v, bias


@st.composite
def plain(draw, kind, batch, queries, keys, rng):
    if kind == "causal":
        window = draw(st.none() | st.integers(1, 20))
        return Causal(window, draw(st.none() | st.integers(-10, 20)))
    if kind == "lengths":
        few = st.lists(st.integers(0, keys), min_size=batch, max_size=batch)
        some = st.lists(st.integers(0, queries), min_size=batch, max_size=batch)
        return Lengths(draw(few), draw(st.none() | some))
    if kind == "blocks":
        cuts = draw(st.lists(st.integers(0, min(queries, keys)), max_size=4))
        return Blocks([0, *sorted(cuts), queries], [0, *sorted(cuts), keys])
    lead = draw(st.sampled_from([(), (batch, 1), (1,)]))
    tensor = torch.randn(*lead, queries, keys, generator=rng)
    return Dense(tensor > -0.5) if draw(st.booleans()) else Dense(tensor.masked_fill(tensor > 1, -torch.inf))


@st.composite
def windows(draw):
    """A window, and how many tokens its grid has."""
    grid = tuple(draw(st.integers(1, 5)) for _ in range(3))
    if draw(st.booleans()):
        bias = SpaceTime(grid, tuple(draw(st.integers(1, n)) for n in grid))
    else:
        tile = tuple(draw(st.integers(1, 3)) for _ in grid)
        window = tuple(t * draw(st.integers(1, -(-n // t))) for n, t in zip(grid, tile, strict=True))
        bias = SpaceTime(grid, window, tile)
    return bias, grid[0] * grid[1] * grid[2]
