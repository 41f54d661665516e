"""`studio show FILE|ID`: the recipe of an output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import emit, emit_json, note, table
from studio.cli.lib.settings import Settings

if TYPE_CHECKING:
    from studio.media import Label
    from studio.recipe import Recipe
    from studio.store.replay import Ancestor


@click.command("show")
@click.argument("what", metavar="FILE|ID")
@click.option("--json", "as_json", is_flag=True, help="Print the recipe as JSON.")
@click.pass_obj
def command(settings: Settings, what: str, as_json: bool) -> None:
    """Show the recipe of a file that Studio wrote, or of an output in the store by its id.

    An id is a prefix of the sha256, at least six characters. Source media are shown as a tree.
    """
    artifact = settings.studio().show(what)
    recipe = artifact.recipe
    if as_json:
        described = recipe.model_dump(mode="json", exclude_none=True) if recipe else None
        label = dataclasses.asdict(artifact.label) if artifact.label else None
        emit_json({"sha256": artifact.sha256, "path": str(artifact.path), "label": label, "recipe": described})
        return
    if recipe is None:
        note(f"note: `{artifact.path}` has no recipe: Studio did not generate it")
    table(("what", "value"), [*(summary(recipe) if recipe else ()), ("path", str(artifact.path)),
                              ("sha256", artifact.sha256), *labels(artifact.label),
                              *(details(recipe) if recipe else ())])  # fmt: skip
    if recipe is not None and recipe.parents:
        emit("")
        for line in drawn(settings.studio().ancestry(what)):
            emit(line)


def labels(label: Label | None) -> Iterator[tuple[str, str]]:
    """What the file says about having been made by AI."""
    if label is not None:
        yield "AI label", ", ".join(each for each in (label.source, label.producer) if each)


def drawn(one: Ancestor, above: str = "", mark: str = "") -> Iterator[str]:
    """What it was made from, as a tree: each with its generator, seed, the start of its id, and its prompt or text."""
    recipe = one.recipe
    described = "external" if recipe is None else f"{recipe.spec.generator}, seed {recipe.spec.seed}"
    words = (
        ""
        if recipe is None
        else next((str(recipe.spec.inputs[k]) for k in ("prompt", "text") if recipe.spec.inputs.get(k)), "")
    )
    yield f"{above}{mark}{one.sha256[:12]}  {described}{f'  “{words[:60]}”' if words else ''}"
    inner = above + {"": "", "├─ ": "│  ", "└─ ": "   "}[mark]
    for number, parent in enumerate(one.parents, 1):
        yield from drawn(parent, inner, "└─ " if number == len(one.parents) else "├─ ")


_FIRST_INPUTS = ("prompt", "text", "negative")


def summary(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a person asks first: the prompt, the seed, the size, and the generator that made it."""
    for name in _FIRST_INPUTS:
        if recipe.spec.inputs.get(name):
            yield from _flatten(name, recipe.spec.inputs[name])
    yield "seed", str(recipe.spec.seed)
    if "size" in recipe.spec.inputs:
        yield from _flatten("size", recipe.spec.inputs["size"])
    yield (
        "made by",
        f"{recipe.spec.generator} {recipe.generator_version} ({recipe.plugin.name} {recipe.plugin.version})",
    )


def details(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every other fact of the recipe as a dotted name and its value, in the recipe's own order."""
    shown = {"seed", "generator", "generator_version", "plugin"}
    facts = recipe.model_dump(mode="json", exclude_none=True)
    for name, value in (facts.pop("spec") | facts).items():
        if name in shown:
            continue
        if name == "inputs":
            value = {key: each for key, each in value.items() if key not in (*_FIRST_INPUTS, "size")}
        yield from _flatten(name, value)


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}", inner)
    elif value in (None, "", []):  # an input that was left out
        return
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
