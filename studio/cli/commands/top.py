"""`studio top`: the running requests of all of the user's processes, live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import console, emit_json, note, printable, table
from studio.cli.lib.settings import Settings
from studio.units import show_bytes

if TYPE_CHECKING:
    from rich.console import Group

DEVICES = ("process", "device", "memory", "models", "steps/s", "requests")
REQUESTS = ("process", "request", "generator", "class", "client", "step", "left")
REFRESH_S = 0.5


@click.command("top")
@click.option("--json", "as_json", is_flag=True, help="Print once, as a JSON list with one object per engine.")
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """Show devices, models, requests and steps per second of every process that uses this data folder.

    On a terminal it refreshes until Ctrl-C; elsewhere it prints the requests once.
    """
    studio = settings.studio()
    if as_json:
        emit_json(studio.running())
    elif not sys.stdout.isatty():
        if rows := list(_requests(studio.running())):
            table(REQUESTS, rows)
        else:
            note("note: nothing is running")
    else:
        _watch(studio)


def _watch(studio: Any) -> None:
    from rich.live import Live

    with Live(_drawn(studio.running()), console=console(stderr=False), screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(_drawn(studio.running()), refresh=True)
                time.sleep(REFRESH_S)
        except KeyboardInterrupt:
            return


def _drawn(engines: list[dict[str, Any]]) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = []
    for columns, rows in ((DEVICES, _devices(engines)), (REQUESTS, _requests(engines))):
        each = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for row in rows:
            each.add_row(*(Text(printable(cell)) for cell in row))
        drawn.append(each)
    return Group(*drawn, Text("" if engines else "nothing is running"))


def _devices(engines: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for engine in engines:
        models = ", ".join(f"{each['generator']} {show_bytes(each['bytes'])}" for each in engine["models"])
        for device in engine["devices"]:
            memory = f"{show_bytes(device['used'])} of {show_bytes(device['budget'])}" if device["budget"] else "-"
            rate, count = engine["request_steps_per_second"], engine["unfinished"]
            yield str(engine["pid"]), device["device"], memory, models or "-", f"{rate:g}", str(count)


def _requests(engines: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for engine in engines:
        for row in engine["requests"]:
            step = f"{row['position']} of {row['steps']}" if row["steps"] else "waiting"
            left = "-" if row["eta_s"] is None else f"{row['eta_s']:g} s"
            kind = "background" if row["background"] else "interactive"
            yield str(engine["pid"]), str(row["request"]), row["generator"], kind, row["client"] or "-", step, left
