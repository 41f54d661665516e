"""A host with the generators of `plugin.py`, and its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import studio
from studio.jobs import Jobs

PLUGIN = Path(__file__).parent / "plugin.py"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Jobs]]:
    """Opens the jobs of one data folder; what a test leaves open is closed."""
    made: list[Jobs] = []

    def make(**options: object) -> Jobs:
        jobs = Jobs(studio.Studio(home=tmp_path / "home", device="cpu", plugins=[PLUGIN]), **options)
        made.append(jobs)
        return jobs

    yield make
    for jobs in made:
        jobs.studio.generator("gate").permits.release(100_000)
        jobs.close()
        jobs.studio.close()


@pytest.fixture
def jobs(opened: Callable[[], Jobs]) -> Jobs:
    return opened()
