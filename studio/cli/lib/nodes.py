"""The progress of a workflow's nodes on standard error: a table on a terminal, otherwise a line for each finished node,
and from time to time one for the running nodes.

With `quiet` nothing is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from studio.cli.lib.output import console, note, printable
from studio.cli.lib.progress import seconds as in_words

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from studio.workflow import Graph, NodeReport

ROWS = 20  # of a larger graph those that run are shown, and the rest is counted
DRAW_EVERY_S = 0.1
LINES = 50  # without a terminal a larger graph gets no line for each node's end
LINE_EVERY_S = 3.0


class NodeDisplay:
    """Shows reports. A context manager; nodes that only pass values on are not shown."""

    def __init__(self, graph: Graph, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        from studio.workflow import NodeReport

        self._rows = {name: NodeReport(name) for name, node in graph.nodes.items() if node.kind != "value"}
        self._quiet, self._drawn = quiet, not quiet and sys.stderr.isatty()
        self._live: Live | None = None
        self._clock, self._last = clock, clock()
        self._shown: set[str] = set()

    def __enter__(self) -> Self:
        if self._drawn:
            from rich.live import Live

            self._live = Live(self._table(), console=console(), auto_refresh=False, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def show(self, report: NodeReport) -> None:
        """Show a report."""
        if self._quiet or report.name not in self._rows:
            return
        self._rows[report.name] = report
        for text in report.notices:
            if text not in self._shown:
                self._shown.add(text)
                note(f"note: {report.name}: {text}")
        if self._live:
            if self._clock() - self._last > DRAW_EVERY_S:
                self._last = self._clock()
                self._live.update(self._table(), refresh=True)
        elif report.over and len(self._rows) <= LINES:
            over = sum(row.over for row in self._rows.values())
            note(f"{report.name}: {_state(report)}  ({over} of {len(self._rows)})")
        elif self._clock() - self._last >= LINE_EVERY_S:
            self._last = self._clock()
            running = [row for row in self._rows.values() if row.state == "running"][:ROWS]
            note("; ".join(f"{row.name}: {_state(row)}" for row in running))

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        drawn = Table.grid(padding=(0, 2))
        rows = list(self._rows.values())
        if len(rows) > ROWS:
            rows = [row for row in rows if row.state == "running"][:ROWS]
            over = sum(row.over for row in self._rows.values())
            drawn.add_row(Text(f"{over} of {len(self._rows)} nodes finished"), Text(""))
        for row in rows:
            drawn.add_row(Text(printable(row.name)), Text(_state(row)))
        return drawn


def _state(row: NodeReport) -> str:
    """One line: the state, executions if there are several, steps, time left."""
    parts = [row.state]
    if row.total > 1 and row.state == "running":
        parts.append(f"{row.finished} of {row.total}")
    if row.state == "done" and row.remembered:
        parts.append(f"{row.remembered} of {row.total} remembered")
    if row.steps and row.state == "running":
        parts.append(f"step {row.position} of {row.steps}")
    elif row.doing and row.state == "running":
        parts.append(row.doing)
    if row.left_s is not None and row.state == "running":
        parts.append(f"{in_words(row.left_s)} left")
    if row.state == "done":
        parts.append(f"{row.seconds:.1f} s")
    if row.error is not None and row.state == "dropped":
        parts.append(printable(row.error.message))
    return ", ".join(parts)
