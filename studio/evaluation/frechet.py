"""The Fréchet distance of two sets of vectors, modelled as Gaussians (Dowson and Landau 1982; Heusel et al. 2017).

||m1 - m2||^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The last trace is the sum of the singular values of X Y^T, where
X and Y are the centred vectors divided by sqrt(N - 1); so no matrix square root is needed, and sets smaller than the
dimension are cheaper. The estimate is biased upwards by about 1/N: compare only sets of equal size.

Try it: ``pytest tests/studio/evaluation/test_metrics.py -k frechet``
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from studio.errors import UsageError

FEWEST = 50
"""Vectors of each set. With fewer, two halves of one set lie as far apart as good pictures from bad ones."""


def distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """The squared distance of vectors x (N, D) and y (M, D). Raises UsageError for fewer than `FEWEST` of either."""
    for rows in (x, y):
        if len(rows) < FEWEST:
            message = f"the Fréchet distance needs at least {FEWEST} images in each set, but one has {len(rows)}"
            raise UsageError(message, hint=f"generate more with `-n {FEWEST}`, or use a folder with more images")
    a, b = (np.asarray(rows, np.float64) for rows in (x, y))
    apart = a.mean(0) - b.mean(0)
    a, b = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
    # Only R of the rows' QR: rotating them changes no singular value, and leaves at most D rows.
    shared = np.linalg.svd(_rotated(a) @ _rotated(b).T, compute_uv=False).sum()
    return float(max(apart @ apart + (a * a).sum() + (b * b).sum() - 2 * shared, 0.0))


def _rotated(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of the QR decomposition, (min(N, D), D)."""
    return np.asarray(np.linalg.qr(rows, mode="r"), np.float64)
