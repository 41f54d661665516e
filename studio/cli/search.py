"""`studio search TEXT [DIR]`: pictures of the store, or of a folder, that go with a text; see `studio/search.py`."""

from __future__ import annotations

import click

from studio.cli.main import EPILOG, Settings
from studio.cli.output import emit_json, note, table


@click.command("search", short_help="Find pictures by words.", epilog=EPILOG)
@click.argument("text")
@click.argument("folder", required=False, metavar="[DIR]")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N",
              help="How many to show.")  # fmt: skip
@click.option("--model", default="", metavar="TEXT", help="A CLIP folder in open_clip's layout, or a pulled one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(settings: Settings, text: str, folder: str | None, count: int, model: str, as_json: bool) -> int:
    """Find the pictures that go best with TEXT (English or Chinese), among those in the store, or those in DIR.

    Pictures are looked at once, by CLIP, and remembered: the next search looks at new and changed ones alone. One that
    cannot be read is left out and told, and the exit code is 1.
    """
    from studio.cli.pictures import tell_broken, wait
    from studio.search import search

    studio = settings.studio()
    found = search(
        studio, text, folder, n=count, model=model, follow=lambda ticket: wait([ticket], quiet=settings.quiet)
    )
    tell_broken(found.broken.values(), debug=settings.debug)
    if not settings.quiet:
        note(f"{found.looked_at} pictures were looked at, {found.known} were known")
    if as_json:
        emit_json([{"score": each.score, "path": str(each.path), "sha256": each.sha256} for each in found.hits])
    else:
        table(("score", "picture"), [(f"{each.score:.3f}", str(each.path)) for each in found.hits])
    return 1 if found.broken else 0
