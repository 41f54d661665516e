"""Diversity of a set of unit vectors: mean pairwise distance, and the Vendi score.

Neither uses the reference pictures, and noise is diverse too, so compare them with recall and coverage.

Try it: ``pytest tests/studio/evaluation/test_metrics.py -k diversity``
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pairwise(x: NDArray[np.floating]) -> float:
    """The mean of 1 - cosine over all pairs of different rows of x (N, D), N at least 2: from 0 (all equal) to 2."""
    rows = np.asarray(x, np.float64)
    total = rows.sum(0)
    return float(1 - (total @ total - (rows * rows).sum()) / (len(rows) * (len(rows) - 1)))


def vendi(x: NDArray[np.floating]) -> float:
    """The Vendi score (Friedman and Dieng 2023): the effective number of different vectors in x (N, D), from 1 to N.

    The exponential of the entropy of the eigenvalues of the cosines over N.
    """
    rows = np.asarray(x, np.float64)
    values = np.linalg.svd(rows / np.sqrt(len(rows)), compute_uv=False) ** 2
    values = values[values > 1e-12]
    values /= values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))
