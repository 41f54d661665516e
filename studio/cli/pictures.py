"""Pictures that are named on a command line: files, and folders that stand for the pictures in them.

It knows nothing of what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studio.cli.output import report_failure

if TYPE_CHECKING:
    from studio.engine import Ticket
    from studio.errors import StudioError
    from studio.media import Image


def open_all(words: Sequence[str], *, debug: bool = False) -> tuple[dict[Path, Image], int]:
    """Read the pictures, folders expanded; what cannot be read is told and left out. Returns them and how many that is.

    Raises UsageError for a folder without pictures, and MediaError if nothing can be read.
    """
    from studio.errors import MediaError
    from studio.media import Image
    from studio.search import files_in

    paths = [path for word in words for path in (files_in(Path(word)) if Path(word).is_dir() else [Path(word)])]
    pictures: dict[Path, Image] = {}
    broken: dict[Path, StudioError] = {}
    for path in dict.fromkeys(paths):
        try:
            pictures[path] = Image.open(path)
        except MediaError as error:
            if len(set(paths)) == 1:
                raise
            broken[path] = error
    tell_broken(broken.values(), debug=debug)
    if not pictures:
        raise MediaError(f"none of the {len(broken)} pictures can be read", hint="name others")
    return pictures, len(broken)


def tell_broken(errors: Iterable[StudioError], *, debug: bool) -> None:
    """Say which pictures are left out, and why."""
    for error in errors:
        report_failure(error, "left out: ", debug=debug)


def wait(tickets: Sequence[Ticket], *, quiet: bool) -> None:
    """Show how far requests are until all are done."""
    from studio.cli.making import follow
    from studio.cli.output import stray_prints_aside
    from studio.cli.progress import Display

    with Display([each.request.seed for each in tickets], quiet=quiet) as display, stray_prints_aside():
        for index, event in follow(tickets):
            display.show(index, event)
