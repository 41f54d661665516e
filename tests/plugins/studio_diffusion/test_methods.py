"""`Studio.image` and `images`, and the best of several, on the starter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import studio
from studio.errors import InputError
from studio_diffusion.methods import best_of

QUICK: dict[str, Any] = {"steps": 1, "size": "64x64"}


@pytest.fixture
def host() -> Iterator[studio.Studio]:
    with studio.Studio(device="cpu", invariant=True) as made:  # else the last bits may differ
        yield made


def test_the_best_come_first(host: studio.Studio) -> None:
    every = host.images("a red apple", 3, seed=5, **QUICK)
    assert [each.recipe.spec.seed for each in every if each.recipe] == [5, 6, 7]
    ranked = best_of(host, "a red apple", every, 2)
    kept = host.images("a red apple", 3, best=2, seed=5, **QUICK)
    assert [each.sha256 for each in kept] == [every[place].sha256 for place, _ in ranked]
    assert ranked[0][1] >= ranked[1][1]


@pytest.mark.parametrize("best", [0, 3])
def test_no_more_are_kept_than_are_made(host: studio.Studio, best: int) -> None:
    with pytest.raises(InputError, match=f"`best` is {best}; it must be from 1 to `n`, which is 2"):
        host.images("a red apple", 2, best=best, **QUICK)
    assert list(host.store) == []
