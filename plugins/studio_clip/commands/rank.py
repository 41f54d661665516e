"""`studio rank TEXT FILES…`: pictures ranked by how well they match a text, by the generator `clip-rank`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit_json, table
from studio.cli.lib.settings import EPILOG, Settings


@click.command("rank", epilog=EPILOG)
@click.argument("text")
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...")
@click.option("--best", type=click.IntRange(1), metavar="K", help="Print only the best K.")
@click.option("--model", default="", metavar="TEXT", help="A pulled model, or a CLIP folder in open_clip's layout.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@takes_request
@click.pass_obj
def command(
    settings: Settings, text: str, files: tuple[str, ...], best: int | None, model: str, as_json: bool,
    request: dict[str, Any],
) -> int:  # fmt: skip
    """Score each picture by its CLIP cosine similarity with TEXT (English or Chinese), and print the best first.

    For a folder, all its pictures are used. Pictures that cannot be read are reported and skipped, and the exit code is
    1.
    """
    from studio.cli.lib.pictures import Counter, expand, report_broken
    from studio.errors import StudioError
    from studio_clip.batches import in_batches
    from studio_clip.methods import scores as scores_of

    studio = settings.studio()
    broken: dict[Path, StudioError] = {}
    paths = expand(files, broken)
    scores: dict[Path, float] = {}
    with Counter(quiet=settings.quiet) as counter:
        asked: dict[str, Any] = {"text": text, "model": model, **request}
        for pictures, made in in_batches(studio, "clip-rank", paths, broken, follow=counter.follow, **asked):
            scores |= zip(pictures, scores_of(made), strict=True)
            counter.count(len(scores), len(paths))
    code = report_broken(broken, rest=bool(scores), debug=settings.debug)
    ranked = sorted(scores.items(), key=lambda each: -each[1])[:best]
    if as_json:
        emit_json([{"score": each, "path": str(path)} for path, each in ranked])
    else:
        table(("score", "picture"), [(f"{each:.3f}", str(path)) for path, each in ranked])
    return code
