"""Measuring alternately, so that other load affects all sides alike."""

from __future__ import annotations

import time
from collections.abc import Callable

Work = Callable[[], object]


def by_turns(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round; the first round, which warms up, is left out."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name in sorted(works, reverse=bool(turn % 2)):
            begun = time.perf_counter()
            works[name]()
            if turn:
                taken[name].append(time.perf_counter() - begun)
    return taken
