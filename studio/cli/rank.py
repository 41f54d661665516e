"""`studio rank TEXT FILES…`: pictures in the order of how well they go with a text, by the generator `clip-rank`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from studio.cli.main import EPILOG, Settings
from studio.cli.output import emit_json, table

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.media import Image

MOST = 1000  # pictures in one request


@click.command("rank", short_help="Order pictures by how well they go with a text.", epilog=EPILOG)
@click.argument("text")
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...")
@click.option("--best", type=click.IntRange(1), metavar="K", help="Print the first K alone.")
@click.option("--model", default="", metavar="TEXT", help="A CLIP folder in open_clip's layout, or a pulled one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(settings: Settings, text: str, files: tuple[str, ...], best: int | None, model: str, as_json: bool) -> int:
    """Score each picture by its cosine with TEXT (English or Chinese) in CLIP's space, and print the best first.

    A folder stands for the pictures in it. A picture that cannot be read is left out and told, and the exit code is 1.
    """
    from studio.cli.pictures import open_all

    studio = settings.studio()
    pictures, broken = open_all(files, debug=settings.debug)
    scores = score(studio, text, list(pictures.values()), model, quiet=settings.quiet)
    ranked = sorted(zip(scores, pictures, strict=True), key=lambda each: -each[0])[:best]
    if as_json:
        emit_json([{"score": each, "path": str(path)} for each, path in ranked])
    else:
        table(("score", "picture"), [(f"{each:.3f}", str(path)) for each, path in ranked])
    return 1 if broken else 0


def score(studio: Studio, text: str, pictures: list[Image], model: str = "", *, quiet: bool = False) -> list[float]:
    """The cosine of each picture with the text. Raises as `Studio.submit`."""
    from studio.cli.pictures import wait
    from studio.media import Embedding

    parts = [pictures[first : first + MOST] for first in range(0, len(pictures), MOST)]
    tickets = [studio.submit("clip-rank", text=text, images=part, model=model) for part in parts]
    wait(tickets, quiet=quiet)
    made = [ticket.result() for ticket in tickets]
    return [float(each) for media in made if isinstance(media, Embedding) for each in media.vector]
