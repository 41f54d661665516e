"""The output of the command line: data to standard output, everything else to standard error.

Text from users and plugins is escaped by `printable`, so that a prompt cannot move the cursor, change colours or fake
a line.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from studio.errors import StudioError

_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, direction marks, lone surrogates, line and paragraph separators


def printable(text: object) -> str:
    """`text` on one line, with control characters and invisible characters escaped."""
    return "".join(
        c if c == "\u200d" or unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii")
        for c in str(text)
    )  # the zero-width joiner stays: many emoji are made with it


def printable_text(text: str) -> str:
    """`text` with its lines: like `printable`, but line ends and tabs are kept."""
    return re.sub(r"[^\n\t]+", lambda found: printable(found[0]), text)


_data: TextIO | None = None  # standard output, while `stray_prints_aside` has something else in its place


def _out() -> TextIO:
    return _data or sys.stdout


@contextmanager
def stray_prints_aside() -> Iterator[None]:
    """Redirect what plugins `print` to standard error, so that standard output has only data."""
    global _data
    before, _data = _data, _out()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _data = before


def emit(text: str) -> None:
    """Write one line of data: `printable` on a terminal, unchanged to a pipe or a file."""
    _out().write((printable(text) if _out().isatty() else text) + "\n")
    _out().flush()


def emit_piece(text: str) -> None:
    """Write a piece of streamed data, without a line end: `printable_text` on a terminal."""
    _out().write(printable_text(text) if _out().isatty() else text)
    _out().flush()


def emit_json(value: Any) -> None:
    """Write `value` as indented JSON in ASCII with escapes, which is safe on any terminal and in any encoding."""
    _out().write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    _out().flush()


def note(text: str) -> None:
    """Write a message that is not data."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def report_error(message: str, hint: str | None = None) -> None:
    """Write `error: …` and, on its own line, `hint: …`."""
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")


def report_failure(error: StudioError, prefix: str = "", *, debug: bool = False) -> None:
    """Report an error; with `debug` also the plugin's traceback, which the engine keeps as text."""
    if debug and (text := getattr(error, "traceback_text", "")):
        for line in text.splitlines():
            note(line)
    report_error(prefix + error.message, error.hint)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output: aligned on a terminal, otherwise tab-separated."""
    if not _out().isatty():
        for row in rows:
            emit("\t".join(printable(cell) for cell in row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")  # nothing is cut: a path or a reason is to be read whole
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console(stderr=False).print(drawn)


def console(*, stderr: bool = True, wrap: bool = True) -> Console:
    """A rich console without markup, emoji codes and highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=not wrap)


def use_streams() -> None:
    """Make both streams accept any file name and prompt in every locale; a closed stream discards its output."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


def drop_stdout_if_broken() -> None:
    """Flush standard output; if that fails, discard the rest, because Python flushes once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
