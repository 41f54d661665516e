"""`studio resume`: go on with what a crash left half done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from studio.cli.main import Settings
from studio.cli.output import emit_json, report_failure, stray_prints_aside, table

if TYPE_CHECKING:
    from studio.resume import Unfinished

COLUMNS = ("id", "generator", "seed", "steps done", "of", "saved")


@click.command("resume", short_help="Go on with what a crash left half done.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Go on with all of them.")
@click.option("--list", "only_list", is_flag=True, help="Only list them.")
@click.option("--drop", is_flag=True, help="Remove what was saved of them instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of paths.")
@click.pass_obj
def command(
    settings: Settings, ids: tuple[str, ...], everything: bool, only_list: bool, drop: bool, as_json: bool
) -> int:
    """Go on with requests that were running when their process was killed, from the last state that was saved.

    What is made is the same, to the byte, as if nothing had happened. Name requests by their id, or give --all; where
    there is but one, neither is needed.
    """
    found = settings.studio().unfinished()
    if only_list:
        _list(found, as_json)
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
        raise UsageError("ids and --all exclude one another", hint="give one of the two")
    if not (ids or everything) and len(found) != 1:
        hint = "name some, or give --all; `studio resume --list` lists them" if found else None
        raise UsageError(f"{len(found)} requests are unfinished", hint=hint)
    return ids or tuple(each.id for each in found)


def _resume(settings: Settings, ids: tuple[str, ...], as_json: bool) -> int:
    from studio.cli.destination import Destination
    from studio.cli.making import Results, follow
    from studio.cli.progress import Display

    if not ids:
        return 0
    resumed = settings.studio().resume(*ids)
    for error in resumed.refused.values():
        report_failure(error, debug=settings.debug)
    tickets = list(resumed.tickets.values())
    results = Results(tickets, Destination(), None)
    seeds = [ticket.request.seed for ticket in tickets]
    with Display(seeds, quiet=settings.quiet) as display, stray_prints_aside():
        for index, event in follow(tickets):
            display.show(index, event)
            results.take(index, event)
    if as_json:
        made = [{"id": key, **told} for key, told in zip(resumed.tickets, results.as_json(), strict=True)]
        emit_json([*made, *({"id": key, "error": error.message} for key, error in resumed.refused.items())])
    else:
        results.print_ready()
    return results.report(debug=settings.debug) or bool(resumed.refused)


def _list(found: list[Unfinished], as_json: bool) -> None:
    if as_json:
        emit_json([_told(each) for each in found])
    else:
        table(COLUMNS, [_row(each) for each in found])


def _told(found: Unfinished) -> dict[str, object]:
    if found.checkpoint is None:
        return {"id": found.id, "path": str(found.path), "error": found.error.message if found.error else ""}
    identity = found.checkpoint.identity.model_dump(mode="json", exclude={"weights", "schema_version"})
    return {"id": found.id, "path": str(found.path), **identity}


def _row(found: Unfinished) -> tuple[str, ...]:
    if found.checkpoint is None:
        return (found.id, "-", "-", "-", "-", found.error.message if found.error else "")
    who = found.checkpoint.identity
    return (found.id, who.generator, str(who.seed), str(who.position), str(who.steps), who.saved)
