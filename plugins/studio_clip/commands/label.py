"""`studio label FILES… --labels a,b,c`: zero-shot classification of pictures, by the generator `clip-label`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit_json, table
from studio.cli.lib.settings import EPILOG, Settings

MAX_PICTURES = 1000  # labels per picture


@click.command("label", epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...")
@click.option("--labels", required=True, metavar="A,B,…", help="Comma-separated labels.")
@click.option("--prompt", default="{}", show_default=True, metavar="TEXT",
              help="Prompt template; {} is replaced by the label: `a picture of {}`.")  # fmt: skip
@click.option("--top", type=click.IntRange(1, MAX_PICTURES), default=1, show_default=True, metavar="K",
              help="Labels to print per picture.")  # fmt: skip
@click.option("--model", default="", metavar="TEXT", help="A pulled model, or a CLIP folder in open_clip's layout.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@takes_request
@click.pass_obj
def command(
    settings: Settings, files: tuple[str, ...], labels: str, prompt: str, top: int, model: str, as_json: bool,
    request: dict[str, Any],
) -> int:  # fmt: skip
    """Classify pictures among the given labels by CLIP (zero-shot), and print the most likely label with its
    probability.

    The probabilities of all labels sum to 1: they compare the labels, and cannot say that none fits. For a folder, all
    its pictures are used. Pictures that cannot be read are reported and skipped, and the exit code is 1.
    """
    from studio.cli.lib.pictures import Counter, expand, report_broken
    from studio.errors import StudioError
    from studio_clip.batches import in_batches
    from studio_clip.methods import labelled

    studio = settings.studio()
    broken: dict[Path, StudioError] = {}
    paths = expand(files, broken)
    names = [each.strip() for each in labels.split(",")]
    asked: dict[str, Any] = {"labels": names, "prompt": prompt, "top": top, "model": model, **request}
    results: dict[Path, list[dict[str, Any]]] = {}
    with Counter(quiet=settings.quiet) as counter:
        for pictures, made in in_batches(studio, "clip-label", paths, broken, follow=counter.follow, **asked):
            results |= zip(pictures, labelled(made), strict=True)
            counter.count(len(results), len(paths))
    code = report_broken(broken, rest=bool(results), debug=settings.debug)
    if as_json:
        emit_json([{"path": str(path), "labels": each} for path, each in results.items()])
    else:
        rows = [(str(path), row["label"], f"{row['share']:.3f}") for path, each in results.items() for row in each]
        table(("picture", "label", "share"), rows)
    return code
