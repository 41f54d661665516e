"""`studio eval GENERATOR --data DIR`: quality, diversity and speed of an image generator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit, emit_json, note, stray_prints_aside, table
from studio.cli.lib.settings import EPILOG, Settings


@click.command("eval", epilog=EPILOG)
@click.argument("generator")
@click.option("--data", required=True, metavar="DIR",
              help="Folder of reference images, such as the training set; each subfolder is a label.")  # fmt: skip
@click.option(
    "-n", "count", type=int, default=200, show_default=True, metavar="N", help="Number of images, 50 to 1000."
)
@click.option("-p", "given", metavar="NAME=VALUE", multiple=True, help="Generator input, such as steps=50. Repeatable.")
@click.option("--by", metavar="NAME", help="Input that gets the label.  [default: prompt, of, label or text]")
@click.option("--size", type=click.IntRange(8, 1024), metavar="N",
              help="Resize all images to N pixels.  [default: the smaller of both]")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Seed of the first image."
)
@click.option("--embedder", metavar="NAME",
              help="Image embedder.  [default: the first that a plugin offers]")  # fmt: skip
@click.option("--speed", "timed", type=click.IntRange(0, 1000), default=8, show_default=True, metavar="N",
              help="Time a batch of N images in a separate process; 0 skips this.")  # fmt: skip
@click.option("-o", "--output", metavar="DIR", help="Report folder, for report.md, result.json and images.")
@click.option("--force", is_flag=True, help="Overwrite an existing report.")
@click.option("--fresh", is_flag=True, help="Ignore cached images and generate all again.")
@takes_request
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def command(
    settings: Settings, generator: str, data: str, count: int, given: tuple[str, ...], by: str | None,
    size: int | None, seed: int, embedder: str | None, timed: int, output: str | None, force: bool, fresh: bool,
    as_json: bool, request: dict[str, Any],
) -> int:  # fmt: skip
    """Generate N images with GENERATOR from the labels in DIR, and compare them with the images in DIR.

    Measures quality, diversity, memorization (distance to the images in DIR) and speed, with 95% bootstrap intervals.
    Images are cached, so an interrupted evaluation continues where it stopped. Results are comparable only for equal
    -n, --size and DIR.
    """
    from studio.cli.lib.nodes import NodeDisplay
    from studio.evaluation import evaluate, report, speed

    settings.local = True  # it measures the engines of this process
    studio = settings.studio()
    inputs = _inputs(given)
    folder = _folder(output, force=force)
    with stray_prints_aside():
        found = evaluate(
            studio, generator, data, n=count, inputs=inputs, by=by, size=size, seed=seed, fresh=fresh,
            embedder=embedder,
            display=lambda graph: NodeDisplay(graph, quiet=settings.quiet), **request,
        )  # fmt: skip
        if timed:
            if not settings.quiet:
                note(f"timing {timed + 1} images in a separate process")
            asked = [{**found.setup["inputs"], **({found.setup["by"]: label} if label else {})}
                     for label in (found.wanted or [""] * count)[: timed + 1]]  # fmt: skip
            found = dataclasses.replace(found, speed=speed.measure(generator, asked, _host(settings), seed, request))
        written = report.write(found, folder, overwrite=force) if folder else None
    if not settings.quiet:
        for text in found.notices:
            note(f"note: {text}")
    if as_json:
        emit_json({**report.as_json(found), "report": str(written) if written else None})
    else:
        table(("of", "figure", "value (95% interval)", "better"), report.rows(found))
        if written:
            emit(str(written))
    return 0


def _inputs(given: tuple[str, ...]) -> dict[str, Any]:
    """`-p NAME=VALUE` as a mapping. Raises UsageError."""
    from studio.errors import UsageError

    found: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise UsageError(f"`-p {each}` has no `=`", hint="write `-p name=value`")
        if name in found:
            raise UsageError(f"`-p {name}=…` is given twice", hint="give one value")
        found[name] = text
    return found


def _folder(output: str | None, *, force: bool) -> Path | None:
    """The report's folder, checked before any work. Raises StoreError, UsageError."""
    from studio.cli.lib.destination import choose
    from studio.evaluation.report import FILES

    if output is None:
        return None
    folder = Path(output)
    choose(f"{output}/", 2, ".md", force=force)
    for name in FILES:
        choose(str(folder / name), 1, Path(name).suffix, force=force)
    return folder


def _host(settings: Settings) -> dict[str, Any]:
    """The arguments of a `Studio` like this one, as JSON, with its data folder, which has the measured step times."""
    return {
        "home": str(settings.studio().home), "device": settings.device, "memory": settings.memory,
        "plugins": [str(each.absolute()) for each in settings.plugins], "invariant": settings.invariant,
    }  # fmt: skip
