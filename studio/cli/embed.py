"""`studio embed TEXT… -i FILE`: texts and pictures as vectors, by the generators `embed`."""

from __future__ import annotations

from typing import Any

import click

from studio.cli.main import EPILOG, Settings
from studio.cli.output import emit_json


@click.command("embed", short_help="Turn texts and pictures into vectors.", epilog=EPILOG)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-i", "--image", "images", multiple=True, metavar="FILE|DIR", help="A picture. May be given again.")
@click.option("-o", "--output", metavar="FILE|DIR", help="Write .npy files here.  [default: the store]")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--model", default="", metavar="TEXT", help="A CLIP folder in open_clip's layout, or a pulled one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the numbers, instead of paths.")
@click.pass_obj
def command(
    settings: Settings, texts: tuple[str, ...], images: tuple[str, ...], output: str | None, force: bool, model: str,
    as_json: bool,
) -> int:  # fmt: skip
    """Embed each TEXT (English or Chinese), then each picture, as a unit vector by CLIP, and print where it is.

    The cosine of two vectors, which is their product, says how well the two go together.
    """
    from studio.cli.destination import choose
    from studio.cli.making import Results, follow
    from studio.cli.output import stray_prints_aside
    from studio.cli.pictures import open_all
    from studio.cli.progress import Display
    from studio.errors import UsageError
    from studio.media import Embedding

    if not (texts or images):
        raise UsageError("there is nothing to embed", hint='write `studio embed "a red apple"`, or `-i picture.png`')
    studio = settings.studio()
    pictures, broken = open_all(images, debug=settings.debug) if images else ({}, 0)
    given: list[tuple[str, dict[str, Any]]] = [(each, {"text": each}) for each in texts]
    given += [(str(path), {"image": each}) for path, each in pictures.items()]
    target = choose(output, len(given), Embedding.suffix, force=force)
    tickets = [studio.submit("embed", seed=place, model=model, **each) for place, (_, each) in enumerate(given)]
    results = Results(tickets, target, None)
    with Display([each.request.seed for each in tickets], quiet=settings.quiet) as display, stray_prints_aside():
        for index, event in follow(tickets):
            display.show(index, event)
            results.take(index, event)
    if as_json:
        vectors = [results.made[i][1].samples() if i in results.made else None for i in range(len(given))]
        emit_json([
            {"of": of, **told, "vector": None if vector is None else [round(float(x), 6) for x in vector]}
            for (of, _), told, vector in zip(given, results.as_json(), vectors, strict=True)
        ])  # fmt: skip
    else:
        results.print_ready()
    return results.report(debug=settings.debug) or min(broken, 1)
