"""95% intervals by the bootstrap (Efron 1979): how far a figure would move with other pictures of the same generator.

The generated pictures are drawn again, with replacement; the reference stays. It knows nothing of any metric.

Try it: ``pytest tests/studio/evaluation/test_bootstrap.py``
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MEANS, STATISTICS = 2000, 50  # draws, of what is cheap and of what is not
Interval = tuple[float, float]


def of_mean(values: NDArray[np.floating], seed: int = 0) -> Interval:
    """The interval of the mean of `values` (N,): the middle 95% of the drawn means."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (MEANS, len(values)))
    low, high = np.percentile(np.asarray(values, np.float64)[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def of_statistic(statistic: Callable[[NDArray[np.int64]], float], count: int, value: float, seed: int = 0) -> Interval:
    """The interval of a statistic of `count` pictures, which is called with the drawn places and was `value` for all.

    A drawn set has pictures twice, and so looks less diverse than it is: distances of sets are shifted in all draws.
    The interval therefore takes the spread alone from them: 1.96 standard errors to either side of the value.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(STATISTICS)]
    half = 1.96 * float(np.std(drawn, ddof=1))
    return value - half, value + half
