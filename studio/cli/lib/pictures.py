"""Pictures on a command line: files, and folders, which mean all pictures in them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from studio.cli.lib.output import console, note, report_failure, stray_prints_aside

if TYPE_CHECKING:
    import rich.progress

    from studio.engine import Event, Ticket
    from studio.errors import StudioError

LINE_EVERY_S = 3.0


def expand(words: Sequence[str], broken: dict[Path, StudioError]) -> list[Path]:
    """The files that the arguments name, each once; a folder means all pictures in it.

    Unreadable files and folders are added to `broken`. Raises UsageError for a folder without pictures.
    """
    from studio.errors import MediaError
    from studio.media.folders import files_in

    paths: list[Path] = []
    for word in map(Path, words):
        try:
            paths += files_in(word, broken=broken) if word.is_dir() else [word]
        except MediaError as error:
            broken[word] = error
    return list(dict.fromkeys(paths))


def report_broken(broken: dict[Path, StudioError], *, rest: bool, debug: bool) -> int:
    """Report skipped pictures with their reasons, and return the exit code. Raises MediaError if there is no `rest`:
    the error itself if it is the only one.
    """
    from studio.errors import MediaError

    if not rest and len(broken) == 1:
        raise next(iter(broken.values()))
    for error in broken.values():
        report_failure(error, "skipped: ", debug=debug)
    if not rest:
        raise MediaError(f"none of the {len(broken)} pictures can be read", hint="name others")
    return 1 if broken else 0


def _show(event: Event, shown: set[str]) -> None:
    from studio.engine import Notice

    if isinstance(event, Notice) and event.text not in shown:
        shown.add(event.text)
        note(f"note: {event.text}")


class Counter:
    """The number of processed pictures on standard error: a bar on a terminal, otherwise a line from time to time.

    A context manager; within it, what plugins print goes to standard error.
    """

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._clock, self._last = quiet, clock, clock()
        self._shown: set[str] = set()
        self._bar: rich.progress.Progress | None = None
        self._aside: AbstractContextManager[None] = stray_prints_aside()

    def __enter__(self) -> Self:
        self._aside.__enter__()
        if not self._quiet and sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("pictures"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console(), redirect_stdout=False, transient=True)
            self._bar.add_task("pictures", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._aside.__exit__(kind, error, traceback)

    def follow(self, ticket: Ticket) -> None:
        """Show the notices of a request."""
        if not self._quiet:
            ticket.listen(lambda event: _show(event, self._shown))

    def count(self, done: int, total: int) -> None:
        """Set the number of processed pictures and their total."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif not self._quiet and done < total and self._clock() - self._last >= LINE_EVERY_S:
            self._last = self._clock()
            note(f"{done} of {total} pictures")
