"""Pictures given to a generator a few at a time, so that any number of them fits into memory and into its inputs.

This module knows nothing of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import StudioError
from studio.media import Image, Media
from studio.media.folders import BATCH, few_at_a_time
from studio_clip.family import MOST

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.engine import Ticket
    from studio.recipe import Recipe

ENOUGH = 512  # pixels of the shorter side; encoders of pictures take 128 to 448

Follow = Callable[["Ticket"], None]


def in_batches(
    host: Studio,
    generator: str,
    paths: Iterable[Path],
    broken: dict[Path, StudioError],
    *,
    opened: Callable[[Path], Media] = Image.open,
    follow: Follow = lambda _: None,
    **inputs: Any,
) -> Iterator[tuple[dict[Path, Recipe | None], Media]]:
    """Give pictures to a generator's `images`, a few at a time, and yield the recipes of those few and what it made.

    What cannot be opened goes into `broken` and is left out. Nothing is stored. A large picture is made smaller first,
    its shorter side to no less than `ENOUGH`: encoders take less. Raises what `Studio.submit` raises.
    """
    for held in few_at_a_time(paths, broken, lambda path: _smaller(opened(path))):
        recipes = {path: each.recipe for path, each in held.items()}
        ticket = host.submit(generator, images=list(held.values()), stored=False, **inputs)
        held.clear()
        follow(ticket)
        made = ticket.result()
        del ticket  # it holds the pictures, and the next are opened meanwhile
        yield recipes, made


def _smaller(media: Media) -> Media:
    """A picture with fewer pixels, where an encoder has no use for more."""
    if not isinstance(media, Image) or (factor := min(media.size) // ENOUGH) < 2:
        return media
    return Image(media.pil.reduce(factor)).attach(media.recipe, media.path)


def parts(pictures: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists for one request each: of images that are in memory as many as it takes, of files a few, opened for it."""
    held: list[Any] = []
    room = MOST
    for each in pictures:
        if isinstance(each, str | Path):
            held.append(_smaller(Image.open(each)))
            room = min(room, BATCH)
        else:
            held.append(each)  # the generator's inputs say what a picture is
        if len(held) >= room:
            yield held
            held, room = [], MOST
    if held:
        yield held
