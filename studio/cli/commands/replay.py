"""`studio replay FILE|ID`: regenerate an output from its recipe, and compare."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.options import takes_label, takes_request
from studio.cli.lib.output import emit, emit_json, note, stray_prints_aside
from studio.cli.lib.settings import Settings
from studio.cli.lib.signing import signed, takes_signer

if TYPE_CHECKING:
    from studio.recipe import Recipe
    from studio.store.replay import ReplayReport


@click.command("replay")
@click.argument("what", metavar="FILE|ID")
@click.option("-o", "--output", metavar="FILE|DIR", help="Write the regenerated output here.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--yes", is_flag=True, help="Run a recipe from another data folder without asking.")
@takes_label
@takes_signer
@takes_request
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def command(
    settings: Settings,
    what: str,
    output: str | None,
    force: bool,
    yes: bool,
    as_json: bool,
    request: dict[str, Any],
    label: dict[str, Any],
    sign: Path | None,
    key: Path | None,
) -> int:
    """Regenerate FILE, or the output ID in the store, from its recipe, and compare.

    Prints `identical`, or the difference and the recorded facts that have changed since. The exit code is 0 for
    identical and 1 for different. Its source media are regenerated first, where the store has their recipes.

    A recipe from another data folder is shown first, for confirmation. It can use only downloaded models, and its
    sizes, steps and time are limited.
    """
    from studio.cli.lib.destination import choose
    from studio.store.replay import is_ours, last_bits

    studio = settings.studio()
    original = studio.load(what)
    target = choose(output, 1, original.suffix, force=force, others=original.others)
    if original.has_label:
        signing = {"sign": sign, "key": key, "no_label": label["ai_label"] is False}
        target = signed(target, settings, signing, original.suffix)
    elsewhere = original.recipe is not None and not is_ours(original.recipe, original.sha256, studio.store)
    if original.recipe and elsewhere and not yes:
        _ask(original.recipe, what)
    if original.recipe and not settings.quiet:
        note(f"regenerating: {original.recipe.spec.generator}, seed {original.recipe.spec.seed}")
        if doubt := last_bits(original.recipe):
            note(doubt)
    with stray_prints_aside():
        report = studio.replay(what, elsewhere=elsewhere, **request, **label)
    stored = report.media.path is not None
    path = (
        str(target.save(report.media, report.recipe.spec.generator, report.recipe.spec.seed))
        if output or stored
        else None
    )
    if not stored:
        for notice in report.media.notices:
            note(f"warning: {notice}")
    if as_json:
        emit_json(
            {
                "identical": report.identical,
                "max_abs_diff": report.max_abs_diff,
                "mean_abs_diff": report.mean_abs_diff,
                "changed_facts": report.changed_facts,
                "ancestors": [dataclasses.asdict(each) for each in report.ancestors],
                "sha256": report.media.sha256,
                "original_sha256": report.original.sha256,
                "path": path,
            }
        )
    else:
        _print(report)
        if output and not settings.quiet:
            note(f"written: {path}")
    return 0 if report.identical else 1


def _ask(recipe: Recipe, what: str) -> None:
    """Show what an untrusted recipe would run, and ask. Raises UsageError if declined, and without a terminal."""
    from studio.store.replay import not_ours

    note(f"`{what}` was not made in this data folder. Its recipe would run:")
    note(f"  {recipe.spec.generator}, seed {recipe.spec.seed}, {recipe.steps} steps")
    for name, value in recipe.spec.inputs.items():
        note(f"  {name}: {str(value)[:200]}")
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or not click.confirm("Run it?", default=False, err=True):
        raise not_ours(recipe, what)


def _print(report: ReplayReport) -> None:
    if report.identical:
        emit("identical")
    elif report.max_abs_diff is None:
        emit("different: the outputs cannot be compared numerically")
    else:
        emit(f"different: at most {report.max_abs_diff:.6g}, mean {report.mean_abs_diff:.6g}")
    for fact in report.changed_facts:
        emit(f"changed: {fact}")
    for each in report.ancestors:
        if not each.identical:
            emit(f"made from {each.sha256[:12]} of {each.generator}: {each.reason or 'different'}")
