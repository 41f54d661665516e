"""What the command line writes and where: data to standard output, everything else to standard error.

It knows nothing of generators or of the engine. Text from a person or a plugin goes through `printable`, so that a
prompt cannot move the cursor, change colours or fake a line.
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
    """`text` on one line, with each character that a terminal would obey, or not show, written as its escape."""
    return "".join(
        c if c == "\u200d" or unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii")
        for c in str(text)
    )  # the zero-width joiner stays: many emoji are made with it


def printable_text(text: str) -> str:
    """`text` on its lines: as `printable`, but for line ends and tabs, which stay."""
    return re.sub(r"[^\n\t]+", lambda found: printable(found[0]), text)


_data: TextIO | None = None  # standard output, while `stray_prints_aside` has something else in its place


def _out() -> TextIO:
    return _data or sys.stdout


@contextmanager
def stray_prints_aside() -> Iterator[None]:
    """While plugins run: what they `print` goes to standard error, so that standard output has only data."""
    global _data
    before, _data = _data, _out()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _data = before


def emit(text: str) -> None:
    """Write one line of data. A terminal gets it `printable`; a pipe or a file gets it as it is."""
    _out().write((printable(text) if _out().isatty() else text) + "\n")
    _out().flush()


def emit_piece(text: str) -> None:
    """Write data that is still growing: no line end is added. A terminal gets it `printable_text`."""
    _out().write(printable_text(text) if _out().isatty() else text)
    _out().flush()


def emit_json(value: Any) -> None:
    """Write `value` as indented JSON. Only ASCII and escapes: safe on any terminal and in any encoding."""
    _out().write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    _out().flush()


def note(text: str) -> None:
    """Tell the person something that is not data."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def report_error(message: str, hint: str | None = None) -> None:
    """Write `error: …` and, on its own line, `hint: …`."""
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")


def report_failure(error: StudioError, prefix: str = "", *, debug: bool = False) -> None:
    """Report an error of the host; with `debug` the plugin's own traceback too, which the engine keeps as text."""
    if debug and (text := getattr(error, "traceback_text", "")):
        for line in text.splitlines():
            note(line)
    report_error(prefix + error.message, error.hint)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output: lined up for a terminal, tab-separated for a program."""
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
    """A rich console that never reads markup, emoji codes or highlights into what it is given."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=not wrap)


def use_streams() -> None:
    """Let both streams carry any file name and any prompt, whatever the locale; a closed one swallows what it gets."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


def drop_stdout_if_broken() -> None:
    """Flush standard output; if that fails, let what is left go nowhere, since Python flushes once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
