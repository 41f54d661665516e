"""Problems in a workflow with their file and line. They are collected and reported together.

Try it: ``studio flow check FILE``
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from studio.errors import UnknownName, WorkflowError


@dataclass(frozen=True, order=True)
class Place:
    """A line (from 1) of a file; for a graph that was built in Python, of the Python file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, order=True)
class WorkflowProblem:
    """A problem, its place and a remedy."""

    place: Place
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass
class Problems:
    """The problems found so far."""

    found: list[WorkflowProblem] = field(default_factory=list)

    def add(self, place: Place, message: str, hint: str | None = None) -> None:
        """Add a problem."""
        self.found.append(WorkflowProblem(place, message, hint))

    def unknown(self, place: Place, kind: str, name: str, known: Iterable[str]) -> None:
        """Add a problem for an unknown name, with the most similar known name."""
        error = UnknownName(kind, name, known)
        self.add(place, error.message, error.hint)

    def raise_if_any(self) -> None:
        """Raise WorkflowError with all of them, in the order of lines."""
        if self.found:
            found = sorted(dict.fromkeys(self.found), key=lambda each: (each.place, each.message))
            raise WorkflowError([(str(each), each.hint) for each in found])
