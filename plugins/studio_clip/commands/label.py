"""`studio label FILES… --labels a,b,c`: which of several labels each picture has, by the generator `clip-label`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit_json, table
from studio.cli.lib.settings import EPILOG, Settings

MOST = 1000  # labels of one picture


@click.command("label", epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...")
@click.option("--labels", required=True, metavar="A,B,…", help="The labels to choose from, separated by commas.")
@click.option("--prompt", default="{}", show_default=True, metavar="TEXT",
              help="What is said of a label, which stands for {}: `a picture of {}`.")  # fmt: skip
@click.option("--top", type=click.IntRange(1, MOST), default=1, show_default=True, metavar="K",
              help="Labels to tell of each picture.")  # fmt: skip
@click.option("--model", default="", metavar="TEXT", help="A CLIP folder in open_clip's layout, or a pulled one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@takes_request
@click.pass_obj
def command(
    settings: Settings, files: tuple[str, ...], labels: str, prompt: str, top: int, model: str, as_json: bool,
    request: dict[str, Any],
) -> int:  # fmt: skip
    """Label pictures by CLIP, without training on the labels, and print the likeliest with its share.

    The shares of all labels sum to 1: they compare the labels with each other, and say nothing where none fits. A
    folder stands for the pictures in it. A picture that cannot be read is left out and named, and the exit code is 1.
    """
    from studio.cli.lib.pictures import Counter, expand, tell_broken
    from studio.errors import StudioError
    from studio_clip.batches import in_batches
    from studio_clip.methods import labelled

    studio = settings.studio()
    broken: dict[Path, StudioError] = {}
    paths = expand(files, broken)
    names = [each.strip() for each in labels.split(",")]
    asked: dict[str, Any] = {"labels": names, "prompt": prompt, "top": top, "model": model, **request}
    told: dict[Path, list[dict[str, Any]]] = {}
    with Counter(quiet=settings.quiet) as counter:
        for pictures, made in in_batches(studio, "clip-label", paths, broken, follow=counter.follow, **asked):
            told |= zip(pictures, labelled(made), strict=True)
            counter.count(len(told), len(paths))
    code = tell_broken(broken, rest=bool(told), debug=settings.debug)
    if as_json:
        emit_json([{"path": str(path), "labels": each} for path, each in told.items()])
    else:
        rows = [(str(path), row["label"], f"{row['share']:.3f}") for path, each in told.items() for row in each]
        table(("picture", "label", "share"), rows)
    return code
