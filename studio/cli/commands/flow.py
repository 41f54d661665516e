"""`studio flow check FILE|NAME` and `studio flow draw FILE|NAME`: check or draw a workflow without running it."""

from __future__ import annotations

from pathlib import Path

import click

from studio.cli.lib.output import emit, note
from studio.cli.lib.settings import EPILOG, Settings


@click.group("flow", epilog=EPILOG)
def command() -> None:
    """Check or draw a workflow without running it."""


@command.command("check", short_help="Check a workflow file and list all problems.", epilog=EPILOG)
@click.argument("file", metavar="FILE|NAME")
@click.pass_obj
def check(settings: Settings, file: str) -> None:
    """Check every key, name and type in FILE, and print its inputs and outputs."""
    graph = settings.studio().workflow(file)
    for flag in graph.Inputs.flags():
        given = "required" if flag.required else f"default: {flag.default}"
        emit(f"input {flag.name}: {flag.range}  [{given}]")
    for output, name in graph.outputs.items():
        emit(f"output {output}: {graph.ports[name]}")
    if not settings.quiet:
        made = sum(node.kind == "make" for node in graph.nodes.values())
        note(f"{file} is valid: {made} generator node{'' if made == 1 else 's'}")


@command.command("draw", short_help="Draw a workflow file as Mermaid or SVG.", epilog=EPILOG)
@click.argument("file", metavar="FILE|NAME")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Output file; SVG if it ends in `.svg`.  [default: Mermaid on standard output]",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.pass_obj
def draw(settings: Settings, file: str, output: str | None, force: bool) -> None:
    """Draw FILE as Mermaid text, or as SVG if the output ends in .svg."""
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
