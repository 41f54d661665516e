"""Memorization: the distance of each generated picture to its nearest reference picture; near ones may be copies.

A picture is suspiciously near if it is nearer than 95% of the reference pictures are to each other. Look at the pairs
in the report: if a model was trained on one picture per label, a good picture of that label is necessarily near it.

Try it: ``pytest tests/studio/evaluation/test_metrics.py -k copying``
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUSPICIOUS = 95  # percent of the reference's own nearest cosines that lie below


@dataclass(frozen=True)
class NearestNeighbours:
    """The nearest reference picture of each generated picture.

    Attributes:
        place: (N,) its index.
        cosine: (N,) their cosine similarity.
        own: (M,) the cosine of each reference picture with its nearest other.
        threshold: above it a cosine is suspicious.
    """

    place: NDArray[np.int64]
    cosine: NDArray[np.float64]
    own: NDArray[np.float64]
    threshold: float

    @property
    def suspicious(self) -> NDArray[np.float64]:
        """(N,) 1 if a picture is nearer to a reference picture than those are to each other, else 0."""
        return (self.cosine > self.threshold).astype(np.float64)


def nearest(generated: NDArray[np.floating], reference: NDArray[np.floating]) -> NearestNeighbours:
    """Find the nearest neighbours of unit vectors (N, D) among (M, D), M at least 2."""
    a, b = (np.asarray(rows, np.float64) for rows in (generated, reference))
    cosines = a @ b.T  # (N, M)
    among = b @ b.T
    np.fill_diagonal(among, -np.inf)
    own = among.max(1)
    return NearestNeighbours(cosines.argmax(1), cosines.max(1), own, float(np.percentile(own, SUSPICIOUS)))
