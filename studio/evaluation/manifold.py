"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of sets of vectors.

Each vector has a ball that reaches to its k-th neighbour in its own set; the balls of a set approximate its manifold.
All four are means over pictures, so that a bootstrap can resample each with fixed balls.

- precision: generated pictures within a ball of the reference; density: how many such balls they are in, over k.
- recall: reference pictures within a ball of the generated; coverage: reference balls with a generated picture inside.

Try it: ``pytest tests/studio/evaluation/test_metrics.py -k manifold``
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Manifold:
    """The terms of the four means: precision and density (N,) of the generated, recall and coverage (M,)."""

    precision: Values
    density: Values
    recall: Values
    coverage: Values


def compare(generated: NDArray[np.floating], reference: NDArray[np.floating], k: int = NEIGHBOURS) -> Manifold:
    """Compare generated (N, D) with reference (M, D) vectors; N and M must be greater than k."""
    own, theirs = radii(reference, k), radii(generated, k)
    apart = distances(generated, reference)  # (N, M)
    inside: NDArray[np.bool_] = apart <= own[None]
    return Manifold(
        precision=np.any(inside, 1).astype(np.float64),
        density=inside.sum(1) / k,
        recall=np.any(apart <= theirs[:, None], 0).astype(np.float64),
        coverage=np.any(inside, 0).astype(np.float64),
    )


def radii(vectors: NDArray[np.floating], k: int) -> Values:
    """The distance of each vector (N, D) to its k-th nearest other."""
    if len(vectors) <= k:
        raise ValueError(f"{len(vectors)} vectors have no {k}-th neighbour each; give more than {k}")
    apart = distances(vectors, vectors)
    np.fill_diagonal(apart, np.inf)
    return np.asarray(np.partition(apart, k - 1, axis=1)[:, k - 1], np.float64)


def distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Values:
    """Euclidean distances (N, M) of vectors (N, D) and (M, D).

    Sums of products lose about half of the digits: vectors nearer than 1e-6 of their length count as equal.
    """
    a, b = (np.asarray(rows, np.float64) for rows in (x, y))
    lengths = (a * a).sum(1)[:, None] + (b * b).sum(1)[None]
    squares = lengths - 2 * a @ b.T
    return np.asarray(np.sqrt(np.where(squares < 1e-12 * lengths, 0, squares)), np.float64)
