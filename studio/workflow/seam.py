"""The seam between a workflow's run and what does the work: one execution of one generator.

A task is JSON and content hashes, and so is what comes of it; media lie in a store that both sides reach. A task may be
done twice, or by another process: equal tasks give equal results. The local worker is in `local`; a durable queue or a
remote executor takes its place without a change to the graph or the run.

Try it: ``pytest tests/studio/workflow/test_workflow.py``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from studio.errors import StudioError
from studio.recipe import MediaRef


@dataclass(frozen=True)
class Task:
    """One execution.

    Attributes:
        generator: by name.
        inputs: JSON; media stand as ``{"sha256", "media_type"}``.
        seed: from 0 to 2**63 - 1.
        parents: hashes of texts that were put into the inputs, for the recipe.
        label: the node, for people.
    """

    generator: str
    inputs: dict[str, Any]
    seed: int
    parents: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Step:
    """How far a task is; `left_s` is expected to be left. Before its first step, `doing` says what is done for it."""

    position: int
    steps: int
    left_s: float | None = None
    doing: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a task: media, which are in the store, or the error."""

    made: MediaRef | None = None
    error: StudioError | None = None
    notices: tuple[str, ...] = ()


News = Step | Outcome


class Worker(Protocol):
    """Does tasks. `tell` is called from any thread; with the Outcome exactly once, and last."""

    def submit(self, tasks: list[tuple[Task, Callable[[News], None]]]) -> None:
        """Accept tasks together. What is wrong with one of them is told as its Outcome."""

    def cancel(self) -> None:
        """Give up all that is not done."""

    def identity(self, task: Task) -> dict[str, Any]:
        """All but inputs and seed that decides what a task makes, as JSON. Raises StudioError."""
