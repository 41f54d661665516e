"""`studio plugins`: what is installed, what it offers, and why something is not there."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from studio.cli.main import Settings
from studio.cli.output import emit_json, note, table

if TYPE_CHECKING:
    from studio.plugins import PluginReport

COLUMNS = ("plugin", "version", "status", "generators", "training recipes", "attention", "reason")


@click.command("plugins", short_help="List the plugins, and why one is not there.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """List the plugins, what each brings, and the reason where something is missing."""
    reports = settings.studio().plugins.reports
    if settings.debug:
        for line in "".join(report.traceback_text for report in reports).splitlines():
            note(line)
    if as_json:
        emit_json([{**asdict(report), "reason": report.reason} for report in reports])
    else:
        table(COLUMNS, [_row(report) for report in reports])


def _row(report: PluginReport) -> list[str]:
    offered = [", ".join(names) or "-" for names in (report.generators, report.trainers, report.attention)]
    return [report.name, report.version, report.status, *offered, report.reason or "-"]
