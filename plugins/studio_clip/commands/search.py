"""`studio search TEXT [DIR]`: search the pictures of the store, or of a folder; see `studio_clip.search`."""

from __future__ import annotations

from typing import Any

import click

from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit_json, note, table
from studio.cli.lib.settings import EPILOG, Settings


@click.command("search", epilog=EPILOG)
@click.argument("text")
@click.argument("folder", required=False, metavar="[DIR]")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N",
              help="Number of results.")  # fmt: skip
@click.option("--model", default="", metavar="TEXT", help="A pulled model, or a CLIP folder in open_clip's layout.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@takes_request
@click.pass_obj
def command(
    settings: Settings, text: str, folder: str | None, count: int, model: str, as_json: bool, request: dict[str, Any]
) -> int:
    """Find the pictures in the store, or in DIR, that match TEXT (English or Chinese) best.

    The score is CLIP's, averaged with that of the prompt or label in the picture's recipe, if there is one. Embeddings
    are cached, so the next search embeds only new and changed pictures. Pictures that cannot be read are reported and
    skipped, and the exit code is 1.
    """
    from studio.cli.lib.pictures import Counter, report_broken
    from studio_clip.search import search

    studio = settings.studio()
    with Counter(quiet=settings.quiet) as counter:
        found = search(
            studio, text, folder, n=count, model=model, follow=counter.follow, watch=counter.count, **request
        )
    code = report_broken(found.broken, rest=bool(found.hits), debug=settings.debug)
    if not settings.quiet:
        if found.renewed:
            note("note: the embedding cache was damaged; it was created again")
        note(f"{found.looked_at} pictures embedded, {found.known} cached")
    if as_json:
        emit_json([{"score": each.score, "path": str(each.path), "sha256": each.sha256} for each in found.hits])
    else:
        table(("score", "picture"), [(f"{each.score:.3f}", str(each.path)) for each in found.hits])
    return code
