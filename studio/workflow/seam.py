"""The seam between a workflow's run and what does the work: a JobSpec for each execution of a generator.

Both it and its outcome are JSON and content hashes; media lie in a store that both sides reach. A job may be done
twice, or by another process: equal jobs give equal results. The local worker is in `local`; a durable queue or a
remote executor takes its place without a change to the graph or the run.

Try it: ``pytest tests/studio/workflow/test_workflow.py``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from studio.errors import StudioError
from studio.recipe import MediaRef
from studio.spec import JobSpec


@dataclass(frozen=True)
class Step:
    """How far a job is; `left_s` is expected to be left. Before its first step, `doing` says what is done for it."""

    position: int
    steps: int
    left_s: float | None = None
    doing: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a job: media, which are in the store, or the error."""

    made: MediaRef | None = None
    error: StudioError | None = None
    notices: tuple[str, ...] = ()


News = Step | Outcome


class Worker(Protocol):
    """Does jobs. `tell` is called from any thread; with the Outcome exactly once, and last."""

    def submit(self, jobs: list[tuple[JobSpec, Callable[[News], None]]]) -> None:
        """Accept jobs together. What is wrong with one of them is told as its Outcome."""

    def cancel(self) -> None:
        """Give up all that is not done."""

    def identity(self, job: JobSpec) -> dict[str, Any]:
        """All but inputs and seed that decides what a job makes, as JSON. Raises StudioError."""
