"""95% bootstrap intervals (Efron 1979): how much a metric would vary with other pictures of the same generator.

The generated pictures are resampled with replacement; the reference pictures are fixed.

Try it: ``pytest tests/studio/evaluation/test_bootstrap.py``
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MEANS, STATISTICS = 2000, 50  # draws, of what is cheap and of what is not
Interval = tuple[float, float]


def of_mean(values: NDArray[np.floating], seed: int = 0) -> Interval:
    """The interval of the mean of `values` (N,): the middle 95% of the resampled means."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (MEANS, len(values)))
    low, high = np.percentile(np.asarray(values, np.float64)[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def of_statistic(statistic: Callable[[NDArray[np.int64]], float], count: int, value: float, seed: int = 0) -> Interval:
    """The interval of a statistic of `count` pictures, which is called with the resampled indices; `value` is that of
    all.

    A resampled set has duplicates, so it looks less diverse, and distances of sets are biased in all resamples. The
    interval therefore uses only their spread: 1.96 standard errors on both sides of the value.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(STATISTICS)]
    half = 1.96 * float(np.std(drawn, ddof=1))
    return value - half, value + half
