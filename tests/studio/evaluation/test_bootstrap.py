"""Intervals: those of textbooks where those are known, and never to one side of the value."""

from __future__ import annotations

import numpy as np
import pytest

from studio.evaluation import bootstrap, diversity


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap.of_mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap.of_mean(np.ones(9)) == (1, 1)
    assert bootstrap.of_mean(values) == (low, high), "the same each time"


def test_the_interval_of_a_statistic_stays_around_its_value():
    """A drawn set is less diverse, in each draw: the plain middle of the draws would lie below the value."""
    x = np.random.default_rng(0).normal(size=(60, 40))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    value = diversity.vendi(x)
    low, high = bootstrap.of_statistic(lambda drawn: diversity.vendi(x[drawn]), len(x), value)
    assert low < value < high
    assert value - low == pytest.approx(high - value)
