"""`studio flow check FILE|NAME` and `studio flow draw FILE|NAME`: look at a workflow without running it."""

from __future__ import annotations

from pathlib import Path

import click

from studio.cli.lib.output import emit, note
from studio.cli.lib.settings import EPILOG, Settings


@click.group("flow", epilog=EPILOG)
def command() -> None:
    """Look at a workflow without running it."""


@command.command("check", short_help="Check a workflow file; tell all that is wrong.", epilog=EPILOG)
@click.argument("file", metavar="FILE|NAME")
@click.pass_obj
def check(settings: Settings, file: str) -> None:
    """Check every key, name and wire of FILE, and print what it asks for and gives."""
    graph = settings.studio().workflow(file)
    for flag in graph.Inputs.flags():
        given = "required" if flag.required else f"default: {flag.default}"
        emit(f"input {flag.name}: {flag.range}  [{given}]")
    for output, name in graph.outputs.items():
        emit(f"output {output}: {graph.ports[name]}")
    if not settings.quiet:
        made = sum(node.kind == "make" for node in graph.nodes.values())
        note(f"{file} is right: {made} nodes that run a generator")


@command.command("draw", short_help="Draw a workflow file as Mermaid or SVG.", epilog=EPILOG)
@click.argument("file", metavar="FILE|NAME")
@click.option(
    "-o", "--output", metavar="FILE", help="Write here; `.svg` makes an SVG.  [default: Mermaid to the terminal]"
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@click.pass_obj
def draw(settings: Settings, file: str, output: str | None, force: bool) -> None:
    """Draw FILE: Mermaid text, or a picture if the output ends in .svg."""
    from studio.cli.lib.destination import choose
    from studio.files import write_atomically
    from studio.workflow import mermaid, svg

    graph = settings.studio().workflow(file)
    if output is None:
        emit(mermaid(graph).rstrip("\n"))
        return
    drawn = svg if Path(output).suffix.lower() == ".svg" else mermaid
    choose(output, 1, Path(output).suffix.lower(), force=force)
    emit(str(write_atomically(output, drawn(graph).encode(), overwrite=force)))
