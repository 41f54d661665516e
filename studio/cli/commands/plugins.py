"""`studio plugins`: list plugins and the reasons for failures; `new` creates a plugin, `check` tests it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import emit, emit_json, note, stray_prints_aside, table
from studio.cli.lib.settings import EPILOG, Settings

if TYPE_CHECKING:
    from studio.plugins import PluginReport
    from studio.testing import Finding

COLUMNS = ("plugin", "version", "status", "generators", "training recipes", "commands", "reason")
CHECKED = ("generator", "check", "status", "found")


@click.group("plugins", invoke_without_command=True, epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List plugins with their generators, training recipes and commands, and why any of these cannot be used."""
    if ctx.invoked_subcommand is not None:
        return
    settings: Settings = ctx.obj
    reports = [_tried(settings, report) for report in settings.studio().plugins.reports]
    if settings.debug:
        for line in "".join(report.traceback_text for report in reports).splitlines():
            note(line)
    if as_json:
        emit_json([{**asdict(report), "reason": report.reason} for report in reports])
    else:
        table(COLUMNS, [_row(report) for report in reports])


def _tried(settings: Settings, report: PluginReport) -> PluginReport:
    """The report, with what is wrong with those commands and methods whose code cannot be imported."""
    from studio.cli.main import load as load_command
    from studio.errors import PluginError, trace_of
    from studio.methods import load as load_method

    plugins = settings.studio().plugins
    tried: list[Callable[[], object]] = [
        *(partial(load_command, plugins.commands[name]) for name in report.commands),
        *(partial(load_method, plugins.methods[name]) for name in report.methods),
    ]
    for load in tried:
        try:
            with stray_prints_aside():
                load()
        except PluginError as error:
            text = report.traceback_text + trace_of(error)
            report = replace(report, status="partly", reasons=(*report.reasons, error.message), traceback_text=text)
    return report


def _row(report: PluginReport) -> list[str]:
    offered = [", ".join(names) or "-" for names in (report.generators, report.trainers, report.commands)]
    return [report.name, report.version, report.status, *offered, report.reason or "-"]


@command.command("trust", short_help="Trust the plugins of a data folder.", epilog=EPILOG)
@click.pass_obj
def trust(settings: Settings) -> None:
    """Allow the data folder (--home, STUDIO_HOME) to load the plugins in its `plugins/` and its `config.toml`.

    Plugins are code that runs with your permissions: read them first. The default data folder is always trusted.
    """
    from studio import configuration

    home = settings.studio().home
    note(f"{home} may load plugins now; recorded in {configuration.trust(home)}")


@command.command("new", short_help="Create a plugin.", epilog=EPILOG)
@click.argument("name")
@click.option("--family", default="image", show_default=True, metavar="MEDIA",
              help="Output type: image, video, audio, text or embedding.")  # fmt: skip
@click.option(
    "--stepped", is_flag=True, help="Write a multi-step generator, which can be batched, cancelled and resumed."
)
@click.option("--in", "parent", default=".", metavar="DIR", type=click.Path(path_type=Path),
              help="Parent folder.  [default: the current folder]")  # fmt: skip
@click.pass_obj
def new(settings: Settings, name: str, family: str, stepped: bool, parent: Path) -> None:
    """Create the plugin NAME in a new folder: an installable package with a working generator, tests and a README."""
    from studio import scaffold
    from studio.errors import UsageError

    if name in settings.studio().generators:
        raise UsageError(f"the generator `{name}` already exists", hint="choose another name")
    folder = scaffold.write(name, parent, family=family, stepped=stepped)
    emit(str(folder))
    note(f"next: pip install -e {folder}, then studio generate {name} --help")


@command.command("check", short_help="Check that generators meet the plugin contract.", epilog=EPILOG)
@click.argument("name")
@click.option("--input", "given", multiple=True, metavar="NAME=VALUE",
              help="Input value, as text or JSON. Repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with all numbers.")
@click.pass_obj
def check(settings: Settings, name: str, given: Sequence[str], as_json: bool) -> int:
    """Check the generator NAME, or every generator of the plugin NAME, and print the findings with numbers.

    Runs about eight small requests. The exit code is 1 if a check fails.
    """
    from studio import devices, testing

    device = devices.choose(settings.device)
    reports = []
    for each in _named(settings, name):
        with stray_prints_aside():
            generator = settings.generator(each)
            report = _ignore if settings.quiet or not as_json else _print
            reports.append(testing.check(generator, _values(given), device=device, report=report))
    if as_json:
        emit_json([report.as_json() for report in reports])
    else:
        table(CHECKED, [[r.generator, f.check, f.status, f.detail] for r in reports for f in r.findings])
    return 0 if all(report.passed for report in reports) else 1


def _ignore(finding: Finding) -> None:
    """Print nothing."""


def _print(finding: Finding) -> None:
    note(f"{finding.check}: {finding.status}")


def _named(settings: Settings, name: str) -> Sequence[str]:
    """The generator of this name, or the generators of the plugin of this name. Raises UnknownName."""
    plugins = settings.studio().plugins
    if name not in plugins.generators:
        for report in plugins.reports:
            if report.name == name and report.generators:
                return report.generators
    return [settings.generator(name).name]


def _values(given: Sequence[str]) -> dict[str, Any]:
    """`name=value`, the value as JSON where it is that, else as text. Raises UsageError."""
    values: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise click.UsageError(f"`--input {each}` must be NAME=VALUE.")
        try:
            values[name.replace("-", "_")] = json.loads(text)
        except ValueError:
            values[name.replace("-", "_")] = text
    return values
