"""The progress of a command's requests on standard error: bars on a terminal, otherwise a line from time to time.

With `quiet` nothing is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from studio.cli.lib.output import console, note
from studio.engine import CancelledEvent, Event, Failed, Finished, Loading, Notice, Progress, Started

if TYPE_CHECKING:
    import rich.progress

ROWS = 8  # more requests than this share one bar
LINE_EVERY_S = 3.0
STARTING = "starting"  # until the engine, whose libraries take a while to load, tells of any request


@dataclass
class RequestRow:
    """One request: its position in steps (0 of 0 until it has started), and the remaining time."""

    label: str
    position: int = 0
    steps: int = 0
    left: str = STARTING
    eta_s: float = 0.0
    end: str = ""  # `done` or `failed`


class Display:
    """Shows the progress of requests with these seeds. A context manager; `drawn` is true if bars are shown."""

    def __init__(
        self, seeds: Sequence[int], *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rows = [RequestRow(f"seed {seed}") for seed in seeds]
        self.quiet, self.drawn = quiet, not quiet and sys.stderr.isatty()
        self._clock, self._last_line = clock, clock()
        self._shown: set[str] = set()
        self._bars: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if self.drawn:
            self._bars = _bars()
            shown = self.rows if len(self.rows) <= ROWS else [self._total()]
            for row in shown:
                self._bars.add_task(row.label, total=None, left=row.left)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, index: int, event: Event) -> None:
        """Show an event of the request at `index`."""
        if self.quiet:
            return
        row = self.rows[index]
        if isinstance(event, Notice):
            self._note(event.text)
        elif isinstance(event, Loading):
            row.left = f"loading {event.generator} on {event.device}"
        elif isinstance(event, Started):
            row.steps, row.left = event.steps, ""
        elif isinstance(event, Progress):
            row.position, row.steps, row.eta_s = event.position, event.steps, event.eta_s or 0.0
            row.left = "" if event.eta_s is None else f"{seconds(event.eta_s)} left"
            if event.steps and event.position >= event.steps:
                row.left, row.eta_s = "finishing", 0.0
        elif isinstance(event, Finished | Failed | CancelledEvent):
            row.end = row.left = "done" if isinstance(event, Finished) else "failed"
            row.eta_s = 0.0
        for other, each in enumerate(self.rows):
            if each.left == STARTING:
                each.left = "waiting"
                self._draw(other)
        self._draw(index)

    def _note(self, text: str) -> None:
        """Show a message once, even if several requests have it."""
        if text not in self._shown:
            self._shown.add(text)
            note(f"note: {text}")

    def _draw(self, index: int) -> None:
        if self._bars:
            alone = len(self.rows) <= ROWS
            row = self.rows[index] if alone else self._total()
            task = self._bars.task_ids[index if alone else 0]
            self._bars.update(
                task, description=row.label, completed=row.position, total=row.steps or None, left=row.left
            )
        elif self._clock() - self._last_line >= LINE_EVERY_S and not all(row.end for row in self.rows):
            self._last_line = self._clock()
            note(self.line())

    def _total(self) -> RequestRow:
        """All requests as one row. A request that has not started counts like the longest that has."""
        longest = max(row.steps for row in self.rows)
        ends = [row.end for row in self.rows]
        failed = f", {ends.count('failed')} failed" if "failed" in ends else ""
        eta = max(row.eta_s for row in self.rows)
        return RequestRow(
            f"{ends.count('done')} of {len(ends)} done{failed}",
            sum(row.position for row in self.rows),
            sum(row.steps or longest for row in self.rows),
            f"{seconds(eta)} left" if eta else next((row.left for row in self.rows if not row.end), ""),
        )

    def line(self) -> str:
        """The state of all requests in one line of text."""
        total = self._total()
        steps = f"step {total.position} of {total.steps}" if total.steps else ""
        return ", ".join(part for part in (total.label, steps, total.left) if part)


def _bars() -> rich.progress.Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=console(),
        redirect_stdout=False,
        transient=True,
    )


def seconds(value: float) -> str:
    """`8 s`, `2 min 5 s`, `1 h 3 min`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
