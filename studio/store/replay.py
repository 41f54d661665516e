"""Replay: find the recipe of a file or an artifact, and compare the regenerated output with the original.

Recipes are untrusted input: they are read only by `Recipe.parse`, their inputs by `Inputs.from_recipe`, and media that
they name come only from the store. This module runs nothing; `studio.api` generates the media.

Try it: ``studio replay FILE``
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from studio import models
from studio.errors import InputError, MediaError, StoreError, UsageError
from studio.files import read_limited
from studio.inputs import Inputs
from studio.media import Audio, Image, Media, Video, animation
from studio.media.base import UNREAD
from studio.recipe import Recipe
from studio.store import Store
from studio.store.store import KINDS

MAX_ANCESTORS = 100  # maximum depth of the ancestry


@dataclass(frozen=True)
class Remade:
    """A source of the media: whether it was regenerated identically, or why it was not tried."""

    sha256: str
    generator: str
    identical: bool
    reason: str = ""


@dataclass(frozen=True)
class ReplayReport:
    """The result of a replay.

    `identical` compares content (pixels, samples, text). The differences are in the media's units (0 to 255 for an
    image; one quantization step of a sample), and None if shapes differ or the media is text. `changed_facts` lists
    recorded facts that have changed. `media` is the regenerated output, `original` the one it is compared with.
    `ancestors` are the sources that were regenerated too, earliest first.
    """

    identical: bool
    max_abs_diff: float | None
    mean_abs_diff: float | None
    changed_facts: list[str]
    media: Media
    original: Media
    recipe: Recipe
    ancestors: tuple[Remade, ...] = ()


def load(what: Path | str, store: Store) -> Media:
    """Read a media file, or an artifact by its id; the recipe comes from the file, else from the store.

    Raises MediaError for a file that cannot be read, UsageError or StoreError for an id (see `Store.get`).
    """
    path = Path(what)
    if os.path.lexists(path) and not path.is_dir():  # also a pipe or a dangling link, which raises an error
        media = _open(path)
        if media.recipe is not None:
            return media
        if unread := [each for each in media.notices if each.startswith(UNREAD)]:
            raise MediaError(f"`{what}`: {unread[0]}", hint="it is damaged, or was written by a newer Studio")
        kept = store.find(media.sha256)
        return media if kept is None else media.attach(kept.recipe, path)
    if isinstance(what, str) and re.fullmatch(r"[0-9a-f]{1,64}", what):
        return store.open(what)
    if path.is_dir():
        raise UsageError(f"`{what}` is a folder", hint="name a media file, or an artifact's id")
    raise UsageError(f"there is no file `{what}`", hint="name a media file, or an artifact's id")


def recipe_of(media: Media, what: Path | str) -> Recipe:
    """The recipe of the media. Raises StoreError if it has none."""
    if media.recipe is None:
        hint = "; ".join(media.notices) or "another program may have saved it and dropped the recipe"
        raise StoreError(f"`{what}` has no recipe, and its content is not in the store", hint=hint)
    return media.recipe


MOST: dict[str, int] = {
    "steps": 200, "frames": 128, "count": 64, "n": 64, "max_tokens": 4096, "width": 2048, "height": 2048, "side": 2048,
    "scale": 8,
}  # fmt: skip
"""Limits for a recipe from elsewhere, by input name."""
MOST_PIXELS = 1 << 21
MOST_PARENTS = 100
MOST_SECONDS = 600  # time limit of a replay


def is_ours(recipe: Recipe, sha256: str, store: Store) -> bool:
    """Whether the store itself has this recipe for this content; what a file says about itself does not count."""
    kept = store.recipe(sha256)
    if kept is None or (kept.output, kept.parents) != (recipe.output, recipe.parents):
        return False
    asks = ("generator", "inputs", "seed", "invariant", "parents")
    same = all(getattr(kept.spec, each) == getattr(recipe.spec, each) for each in asks)
    return same and kept.spec.model.key == recipe.spec.model.key


def check_bounds(recipe: Recipe, inputs: Inputs) -> None:
    """Raise InputError if a recipe from elsewhere exceeds the limits in `MOST`.

    `inputs` are the recipe's inputs after validation by the generator, so that "1000" is a number.
    """
    for name, value in inputs:
        if name in MOST and isinstance(value, int | float) and value > MOST[name]:
            raise _beyond(name, value, MOST[name])
        sides = re.fullmatch(r"\s*(\d{1,9})\s*[xX×*]\s*(\d{1,9})\s*", value) if isinstance(value, str) else None
        if name == "size" and sides and int(sides[1]) * int(sides[2]) > MOST_PIXELS:
            raise _beyond(name, value, f"{MOST_PIXELS:,} pixels")
    if len(recipe.parents) > MOST_PARENTS:
        raise _beyond("parents", len(recipe.parents), MOST_PARENTS)


def _beyond(name: str, value: object, most: object) -> InputError:
    message = f"the recipe's `{name}` is {value}; the limit for a recipe from elsewhere is {most}"
    return InputError(name, message, hint="run the generator yourself, with the inputs that `studio show` prints")


def not_ours(recipe: Recipe, what: Path | str) -> UsageError:
    """The error for a recipe from elsewhere that was not confirmed."""
    message = f"`{what}` was not made in this data folder: its recipe runs `{recipe.spec.generator}`"
    return UsageError(message, hint="`studio show` prints its inputs; `studio replay --yes` runs it, within limits")


def with_pulled_model(recipe: Recipe, home: Path) -> Recipe:
    """The recipe with its model replaced by a downloaded one whose weights have the same hashes, if there is one."""
    spec = recipe.spec
    named = spec.model.source or spec.inputs.get("model")  # there in recipes of schema 1
    if not isinstance(named, str) or not named or models.is_source(named):
        return recipe
    found = models.Models(home).holding(spec.model.sha256.values())
    if found is None:
        return recipe
    model = spec.model.model_copy(update={"source": found})
    inputs = {name: value for name, value in spec.inputs.items() if value != named or name != "model"}
    return recipe.model_copy(update={"spec": spec.model_copy(update={"model": model, "inputs": inputs})})


@dataclass(frozen=True)
class Ancestor:
    """A source of an artifact. `recipe` is None for media from outside."""

    sha256: str
    recipe: Recipe | None
    parents: tuple[Ancestor, ...] = ()

    def in_order(self) -> Iterator[Ancestor]:
        """This and all its sources, each once, earliest first."""
        seen: set[str] = set()

        def walk(one: Ancestor) -> Iterator[Ancestor]:
            if one.sha256 in seen:
                return
            seen.add(one.sha256)
            for parent in one.parents:
                yield from walk(parent)
            yield one

        return walk(self)


def ancestry(sha256: str, recipe: Recipe | None, store: Store) -> Ancestor:
    """The sources of an artifact, as far as the store has their recipes.

    A recipe may be untrusted: a cycle is cut, and ancestors deeper than `MAX_ANCESTORS` are left out.
    """
    known: dict[str, Ancestor] = {}

    def look(sha: str, its: Recipe | None, path: tuple[str, ...]) -> Ancestor:
        if sha in known:
            return known[sha]
        parents: list[Ancestor] = []
        for each in its.parents if its and len(path) < MAX_ANCESTORS else ():
            if each != sha and each not in path and re.fullmatch(r"[0-9a-f]{64}", each):
                parents.append(look(each, store.recipe(each), (*path, sha)))
        known[sha] = Ancestor(sha, its, tuple(parents))
        return known[sha]

    return look(sha256, recipe, ())


def last_bits(recipe: Recipe) -> str:
    """Why a replay may differ by rounding, or an empty string: a batched request is replayed without batching."""
    widest = recipe.batch_width.max
    if widest == 1:
        return ""
    return f"generated in a batch of {widest}, replayed without batching: rounding may differ, by 1/255 in a pixel"


def compare(original: Media, made: Media, recipe: Recipe, ancestors: tuple[Remade, ...] = ()) -> ReplayReport:
    """Compare the original with the regenerated output, and list the changed facts."""
    changed = recipe.changed_facts(made.recipe) if made.recipe else []
    if original.sha256 != recipe.output.sha256:
        changed.insert(0, f"content: edited since; the recipe's output was {recipe.output.sha256[:12]}…")
    difference = _difference(original, made)
    largest, mean = difference if difference else (None, None)
    return ReplayReport(original == made, largest, mean, changed, made, original, recipe, ancestors)


def _difference(one: Media, other: Media) -> tuple[float, float] | None:
    """Maximum and mean absolute difference, or None if the media cannot be compared."""
    if one == other:
        return 0.0, 0.0
    first, second = one.samples(), other.samples()
    if first is None or second is None or first.shape != second.shape:
        return None
    import numpy as np

    gap = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return float(gap.max()), float(gap.mean())


def _open(path: Path) -> Media:
    """Open a file by its suffix; a file with any other suffix must be an image. An animated image is a video."""
    suffix = path.suffix.lower()
    if suffix in animation.FORMATS and animation.moves(read_limited(path, Video.max_file_bytes)):
        with suppress(MediaError):  # frames of different durations: its first frame is an image
            return Video.open(path)
    return Audio.open(path) if suffix in Audio.others else KINDS.get(suffix, Image).open(path)
