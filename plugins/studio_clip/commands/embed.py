"""`studio embed TEXT… -i FILE`: embeddings of texts and pictures, by the generator `embed`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit_json
from studio.cli.lib.settings import EPILOG, Settings

if TYPE_CHECKING:
    from studio.destination import Destination


@click.command("embed", epilog=EPILOG)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-i", "--image", "images", multiple=True, metavar="FILE|DIR", help="Picture to embed; may be repeated.")
@click.option("-o", "--output", metavar="FILE|DIR", help="Write .npy files to this path.  [default: the store]")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--model", default="", metavar="TEXT", help="A pulled model, or a CLIP folder in open_clip's layout.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the numbers, instead of paths.")
@takes_request
@click.pass_obj
def command(
    settings: Settings, texts: tuple[str, ...], images: tuple[str, ...], output: str | None, force: bool, model: str,
    as_json: bool, request: dict[str, Any],
) -> int:  # fmt: skip
    """Embed each TEXT (English or Chinese), then each picture, as a unit vector by CLIP, and print its path.

    The cosine similarity of two vectors (their dot product) says how well they match.
    """
    from studio.cli.lib.destination import choose
    from studio.cli.lib.pictures import expand, report_broken
    from studio.errors import StudioError, UsageError
    from studio.media import Embedding
    from studio.media.folders import few_at_a_time

    if not (texts or images):
        raise UsageError("there is nothing to embed", hint='write `studio embed "a red apple"`, or `-i picture.png`')
    broken: dict[Path, StudioError] = {}
    paths = expand(images, broken)
    target = choose(output, len(texts) + len(paths), Embedding.suffix, force=force)
    results: list[dict[str, Any]] = []
    code = 0
    few = few_at_a_time(paths, broken)
    pictures: Iterator[dict[str, dict[str, Any]]] = (
        {str(path): {"image": each} for path, each in some.items()} for some in few
    )
    words: dict[str, dict[str, Any]] = {each: {"text": each} for each in texts}
    for given in chain([words], pictures):
        if given:
            made, failed = _embed(settings, given, target, {"model": model, **request}, len(results), as_json=as_json)
            results, code = [*results, *made], max(code, failed)
    if as_json:
        emit_json(results)
    return max(code, report_broken(broken, rest=bool(results), debug=settings.debug))


def _embed(
    settings: Settings, given: dict[str, dict[str, Any]], target: Destination, more: dict[str, Any], first: int, *,
    as_json: bool,
) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
    """Embed a batch, with seeds from `first` up; return the results as JSON, and the exit code."""
    from studio.cli.lib.making import Results, follow
    from studio.cli.lib.output import stray_prints_aside
    from studio.cli.lib.progress import Display

    studio = settings.studio()
    tickets = [studio.submit("embed", seed=first + i, **more, **each) for i, each in enumerate(given.values())]
    results = Results(tickets, target, None)
    with Display([each.request.spec.seed for each in tickets], quiet=settings.quiet) as display, stray_prints_aside():
        for index, event in follow(tickets):
            display.show(index, event)
            results.take(index, event)
    if not as_json:
        results.print_ready()
    vectors = [results.made[i][1].samples() if i in results.made else None for i in range(len(given))]
    rows = [
        {"of": of, **one, "vector": None if vector is None else [round(float(x), 6) for x in vector]}
        for of, one, vector in zip(given, results.as_json(), vectors, strict=True)
    ]
    return rows, results.report(debug=settings.debug)
