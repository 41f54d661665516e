"""The executor protocol between a workflow's run and the process that does the work: one JobSpec per execution.

A job and its result are JSON and content hashes; media are in a store that both sides can read. A job may run twice, or
in another process: equal jobs give equal results. The local executor is in `local_executor`; a durable queue or a
remote executor can replace it without a change to the graph or the run.

Try it: ``pytest tests/studio/workflow/test_local_executor.py``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from studio.errors import StudioError
from studio.recipe import MediaRef
from studio.spec import JobSpec


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job; `left_s` is the estimated time left. Before the first step `doing` is the activity."""

    position: int
    steps: int
    left_s: float | None = None
    doing: str = ""


@dataclass(frozen=True)
class JobResult:
    """The result of a job: stored media, or the error."""

    made: MediaRef | None = None
    error: StudioError | None = None
    notices: tuple[str, ...] = ()


JobUpdate = JobProgress | JobResult


class Executor(Protocol):
    """Runs jobs. The callback is called from any thread, with the JobResult exactly once, as the last update."""

    def submit(self, jobs: list[tuple[JobSpec, Callable[[JobUpdate], None]]]) -> None:
        """Accept jobs together. An invalid job is reported as its JobResult."""

    def cancel(self) -> None:
        """Cancel all unfinished jobs."""

    def pause(self) -> None:
        """Save the states of all unfinished jobs to disk and end them; returns when they have ended."""

    def identity(self, job: JobSpec) -> dict[str, Any]:
        """Everything except inputs and seed that determines the output of a job, as JSON. Raises StudioError."""
