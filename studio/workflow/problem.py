"""Where something stands in a workflow, and what is wrong there. Problems are collected and told all at once.

Knows nothing of graphs.

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
class Problem:
    """One thing that is wrong, where, and what to do about it."""

    place: Place
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass
class Problems:
    """The problems found so far."""

    found: list[Problem] = field(default_factory=list)

    def add(self, place: Place, message: str, hint: str | None = None) -> None:
        """Note one."""
        self.found.append(Problem(place, message, hint))

    def unknown(self, place: Place, kind: str, name: str, known: Iterable[str]) -> None:
        """Note a name that does not exist, with the nearest that does."""
        error = UnknownName(kind, name, known)
        self.add(place, error.message, error.hint)

    def raise_if_any(self) -> None:
        """Raise WorkflowError with all of them, in the order of lines."""
        if self.found:
            found = sorted(dict.fromkeys(self.found), key=lambda each: (each.place, each.message))
            raise WorkflowError([(str(each), each.hint) for each in found])
