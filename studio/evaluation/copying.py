"""How near each generated picture lies to its nearest reference picture: near ones may be copies of training pictures.

What counts as suspiciously near is told by the reference: nearer than all but one in twenty of its pictures are to
another of them. A person has to look; the report shows pairs. Where a model is trained on one picture of a label,
a good picture of that label is near to it by the task.

Try it: ``pytest tests/studio/evaluation/test_metrics.py -k copying``
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUSPICIOUS = 95  # percent of the reference's own nearest cosines that lie below


@dataclass(frozen=True)
class NearestNeighbours:
    """For each generated picture its nearest reference picture.

    Attributes:
        place: (N,) which one.
        cosine: (N,) of the two.
        own: (M,) the cosine of each reference picture with its nearest other.
        threshold: above it a cosine is suspicious.
    """

    place: NDArray[np.int64]
    cosine: NDArray[np.float64]
    own: NDArray[np.float64]
    threshold: float

    @property
    def suspicious(self) -> NDArray[np.float64]:
        """(N,) 1 where a picture is nearer to a reference picture than those are to each other, else 0."""
        return (self.cosine > self.threshold).astype(np.float64)


def nearest(generated: NDArray[np.floating], reference: NDArray[np.floating]) -> NearestNeighbours:
    """Find them, of unit vectors (N, D) and (M, D), M at least 2."""
    a, b = (np.asarray(rows, np.float64) for rows in (generated, reference))
    cosines = a @ b.T  # (N, M)
    among = b @ b.T
    np.fill_diagonal(among, -np.inf)
    own = among.max(1)
    return NearestNeighbours(cosines.argmax(1), cosines.max(1), own, float(np.percentile(own, SUSPICIOUS)))
