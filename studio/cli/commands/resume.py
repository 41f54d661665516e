"""`studio resume`: resume requests after a crash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studio.cli.lib.output import emit_json, note, report_failure, stray_prints_aside, table
from studio.cli.lib.settings import Settings

if TYPE_CHECKING:
    from studio.destination import Destination
    from studio.engine import Ticket
    from studio.engine.checkpoints.resume import Unfinished

COLUMNS = ("id", "generator", "seed", "steps done", "of", "saved", "output")


@click.command("resume")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Resume all unfinished requests.")
@click.option("--list", "only_list", is_flag=True, help="List unfinished requests.")
@click.option("--drop", is_flag=True, help="Delete their saved state instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of paths.")
@click.pass_obj
def command(
    settings: Settings, ids: tuple[str, ...], everything: bool, only_list: bool, drop: bool, as_json: bool
) -> int:
    """Resume requests whose process was killed, from their last saved state.

    The output is byte-identical to that of an uninterrupted run, and is written where the killed command would have
    written it (`--list` shows where). Name requests by id, or give --all; a single request needs neither.
    """
    settings.local = True  # saved states are continued by the engines of this process
    found = settings.studio().unfinished()
    if only_list:
        _list(found, settings.studio().home, as_json)
        return 0
    chosen = _choose(found, ids, everything)
    if drop:
        if chosen:
            settings.studio().drop(*chosen)
        return 0
    return _resume(settings, chosen, as_json)


def _choose(found: list[Unfinished], ids: tuple[str, ...], everything: bool) -> tuple[str, ...]:
    from studio.errors import UsageError

    if ids and everything:
        raise UsageError("ids and --all cannot be combined", hint="give one of the two")
    if not (ids or everything) and len(found) != 1:
        if not found:
            raise UsageError("no unfinished requests: nothing to resume")
        hint = "give their ids, or --all; `studio resume --list` lists them"
        raise UsageError(f"{len(found)} requests are unfinished", hint=hint)
    return ids or tuple(each.id for each in found)


def _resume(settings: Settings, ids: tuple[str, ...], as_json: bool) -> int:
    from studio.cli.lib.making import Results, follow
    from studio.cli.lib.progress import Display
    from studio.destination import Destination

    if not ids:
        return 0
    resumed = settings.studio().resume(*ids)
    for error in resumed.refused.values():
        report_failure(error, debug=settings.debug)
    tickets = list(resumed.tickets.values())
    home = settings.studio().home
    targets = {index: target for index, ticket in enumerate(tickets) if (target := _target(ticket, home)) is not None}
    results = Results(tickets, Destination(), None, targets)
    seeds = [ticket.request.spec.seed for ticket in tickets]
    with Display(seeds, quiet=settings.quiet) as display, stray_prints_aside():
        for index, event in follow(tickets):
            display.show(index, event)
            results.take(index, event)
    if as_json:
        made = [{"id": key, **described} for key, described in zip(resumed.tickets, results.as_json(), strict=True)]
        emit_json([*made, *({"id": key, "error": error.message} for key, error in resumed.refused.items())])
    else:
        results.print_ready()
    return results.report(debug=settings.debug) or bool(resumed.refused)


def _target(ticket: Ticket, home: Path) -> Destination | None:
    """Where the killed command was to write it; None, with a warning, where that does not count."""
    from studio.destination import Destination
    from studio.errors import UsageError
    from studio.files import make_folder

    try:
        target = Destination.from_json(ticket.request.spec.destination, home)
    except UsageError as error:
        note(f"warning: {error.message}: {error.hint}")
        return None
    if target.folder and target.target is not None:
        make_folder(target.target)
    return target


def _place(found: Unfinished, home: Path) -> str:
    from studio.destination import Destination
    from studio.errors import UsageError

    assert found.checkpoint is not None
    try:
        target = Destination.from_json(found.checkpoint.progress.spec.destination, home)
    except UsageError:
        return "store"
    return "store" if target.target is None else f"{target.target}{os.sep if target.folder else ''}"


def _list(found: list[Unfinished], home: Path, as_json: bool) -> None:
    if as_json:
        emit_json([_as_json(each, home) for each in found])
    elif found:
        table(COLUMNS, [_row(each, home) for each in found])
    else:
        note("note: no unfinished requests")


def _as_json(found: Unfinished, home: Path) -> dict[str, object]:
    if found.checkpoint is None:
        return {"id": found.id, "path": str(found.path), "error": found.error.message if found.error else ""}
    progress = found.checkpoint.progress.model_dump(mode="json")
    return {"id": found.id, "path": str(found.path), **progress, "goes_to": _place(found, home)}


def _row(found: Unfinished, home: Path) -> tuple[str, ...]:
    if found.checkpoint is None:
        return (found.id, "-", "-", "-", "-", "-", found.error.message if found.error else "")
    far = found.checkpoint.progress
    steps, spec = (str(far.position), str(far.steps)), far.spec
    return (found.id, spec.generator, str(spec.seed), *steps, far.saved, _place(found, home))
