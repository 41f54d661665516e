"""Each metric against a slow reference, and on cases whose answer is known: equal sets, one frame, noise, few modes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.errors import UsageError
from studio.evaluation import cmmd, copying, diversity, frechet, labels, manifold


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(seed, count, width=8, spread=1.0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(0, spread, (count, width)) + np.eye(width)[0])


seeds = st.integers(0, 2**31)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


@settings(max_examples=10)
@given(seeds, st.integers(50, 80), st.integers(50, 80), st.integers(2, 70))
def test_frechet_is_the_formula_with_roots_of_matrices(seed, n, m, width):
    x, y = draw(seed, n, width), draw(seed + 1, m, width, 2.0)
    a, b = np.cov(x.T), np.cov(y.T)
    shared = np.trace(root(root(a) @ b @ root(a)))
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * shared
    assert frechet.distance(x, y) == pytest.approx(wanted, abs=1e-6)
    assert frechet.distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet.distance(x, y) == pytest.approx(frechet.distance(y, x))


def test_frechet_of_gaussians_that_are_known():
    """Two Gaussians that differ by a shift and a scale: |shift|^2 + width (1 - scale)^2."""
    x = np.random.default_rng(0).normal(size=(4000, 4))
    assert frechet.distance(x, 3 * x + 5) == pytest.approx(((5 + 2 * x.mean(0)) ** 2).sum() + 4 * 4, rel=0.05)


@pytest.mark.parametrize("count", [1, 2, frechet.FEWEST - 1])
def test_frechet_of_few_pictures_is_refused_with_the_number_needed(count):
    few, enough = draw(0, count), draw(1, frechet.FEWEST)
    for pair in ((few, enough), (enough, few)):
        with pytest.raises(UsageError, match=f"at least {frechet.FEWEST} images in each set, but one has {count}"):
            frechet.distance(*pair)


@settings(max_examples=10)
@given(seeds, st.integers(2, 12), st.integers(2, 12))
def test_cmmd_is_the_sum_over_all_pairs(seed, n, m):
    x, y = draw(seed, n), draw(seed + 1, m, spread=3.0)

    def mean(a, b):
        return np.mean([[math.exp(-((p - q) ** 2).sum() / (2 * cmmd.SIGMA**2)) for q in b] for p in a])

    wanted = cmmd.SCALE * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd.distance(x, y) == pytest.approx(wanted, abs=1e-8)
    assert cmmd.distance(x, x) == pytest.approx(0, abs=1e-9)


@settings(max_examples=10)
@given(seeds, st.integers(4, 12), st.integers(4, 12), st.integers(1, 3))
def test_manifold_is_what_the_papers_define(seed, n, m, k):
    x, y = draw(seed, n), draw(seed + 1, m)

    def apart(p, q):
        return float(np.sqrt(((p - q) ** 2).sum()))

    def radius(points, i):
        return sorted(apart(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    of_x, of_y = ([radius(points, i) for i in range(len(points))] for points in (x, y))
    found = manifold.compare(x, y, k)
    assert found.precision.tolist() == [any(apart(p, y[j]) <= of_y[j] for j in range(m)) for p in x]
    assert found.density == pytest.approx([sum(apart(p, y[j]) <= of_y[j] for j in range(m)) / k for p in x])
    assert found.recall.tolist() == [any(apart(q, x[i]) <= of_x[i] for i in range(n)) for q in y]
    assert found.coverage.tolist() == [any(apart(p, y[j]) <= of_y[j] for p in x) for j in range(m)]


def test_manifold_of_equal_sets_is_whole():
    x = draw(0, 60)
    found = manifold.compare(x, x)
    assert (found.precision.mean(), found.recall.mean(), found.coverage.mean()) == (1, 1, 1)
    with pytest.raises(ValueError, match="give more than 5"):
        manifold.compare(x[:5], x)


def test_mode_collapse_is_seen_as_low_recall_and_low_diversity():
    """Ten modes in the reference, two of them made, each well."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(10, 16)))
    reference = unit(np.repeat(centres, 20, 0) + 0.02 * rng.normal(size=(200, 16)))
    every = unit(np.repeat(centres, 20, 0) + 0.02 * rng.normal(size=(200, 16)))
    two = unit(np.repeat(centres[:2], 100, 0) + 0.02 * rng.normal(size=(200, 16)))
    whole, collapsed = manifold.compare(every, reference), manifold.compare(two, reference)
    assert collapsed.precision.mean() > 0.8
    assert whole.recall.mean() > 0.8
    assert collapsed.recall.mean() <= 0.2
    assert collapsed.coverage.mean() <= 0.2
    assert diversity.vendi(two) < 2.5 < 6 < diversity.vendi(every) < 11
    assert diversity.pairwise(two) < diversity.pairwise(every)
    assert frechet.distance(two, reference) > 5 * frechet.distance(every, reference)
    assert cmmd.distance(two, reference) > 5 * cmmd.distance(every, reference)


@settings(max_examples=10)
@given(seeds, st.integers(2, 12))
def test_diversity_is_what_its_definitions_say(seed, n):
    x = draw(seed, n)
    pairs = [1 - x[i] @ x[j] for i in range(n) for j in range(i)]
    assert diversity.pairwise(x) == pytest.approx(np.mean(pairs))
    values = np.linalg.eigvalsh(x @ x.T / n)
    values = values[values > 1e-12]
    assert diversity.vendi(x) == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-6)


def test_diversity_of_one_frame_and_of_what_has_nothing_in_common():
    assert diversity.vendi(np.repeat(draw(0, 1), 7, 0)) == pytest.approx(1)
    assert diversity.pairwise(np.repeat(draw(0, 1), 7, 0)) == pytest.approx(0)
    assert diversity.vendi(np.eye(7)) == pytest.approx(7)
    assert diversity.pairwise(np.eye(7)) == pytest.approx(1)


def test_copying_shows_copies():
    reference = draw(0, 100, 16)
    fresh, copies = draw(1, 50, 16), unit(reference[:50] + 1e-3 * draw(2, 50, 16))
    found = copying.nearest(copies, reference)
    assert found.place.tolist() == list(range(50))
    assert found.suspicious.mean() == 1
    assert copying.nearest(fresh, reference).suspicious.mean() < 0.3
    assert found.own.max() < 1, "no reference picture is its own neighbour"


@settings(max_examples=10)
@given(seeds, st.integers(1, 10), st.integers(1, 12))
def test_labels_are_ranked_by_their_nearest_picture(seed, n, m):
    x, y = draw(seed, n), draw(seed + 1, m)
    known = [f"label {place % 4}" for place in range(m)]
    wanted = [known[place % m] for place in range(n)]
    near = [{label: max(p @ q for q, own in zip(y, known, strict=True) if own == label) for label in known} for p in x]
    slow = [sum(value >= each[label] - 1e-12 for value in each.values())
            for each, label in zip(near, wanted, strict=True)]  # fmt: skip
    assert labels.ranks(x, wanted, y, known).tolist() == slow


def test_labels_of_the_pictures_themselves_and_of_one_frame():
    x = draw(0, 40)
    names = [str(place) for place in range(40)]
    assert (labels.ranks(x, names, x, names) == 1).all()
    frame = np.repeat(draw(3, 1), 40, 0)
    assert (labels.ranks(frame, names, x, names) == 1).mean() == 1 / 40
    assert labels.clip_score(x, x) == pytest.approx([100] * 40)
    assert labels.clip_score(x, -x).tolist() == [0] * 40
