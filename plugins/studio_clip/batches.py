"""Batches of pictures for a generator, so that any number of them fits into memory and the limits of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import StudioError
from studio.media import Image, Media
from studio.media.folders import BATCH, few_at_a_time
from studio_clip.family import MAX_PICTURES

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.engine import Ticket
    from studio.recipe import Recipe

ENOUGH = 512  # pixels of the shorter side; image encoders take 128 to 448

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
    """Run a generator with the input `images` on batches of pictures; yield each batch's recipes and the output.

    Files that cannot be opened go into `broken` and are skipped. Outputs are not stored. Large pictures are downscaled
    first, the shorter side to no less than `ENOUGH`. Raises as `Studio.submit`.
    """
    for held in few_at_a_time(paths, broken, lambda path: _smaller(opened(path))):
        recipes = {path: each.recipe for path, each in held.items()}
        ticket = host.submit(generator, images=list(held.values()), stored=False, **inputs)
        held.clear()
        follow(ticket)
        made = ticket.result()
        del ticket  # it holds the pictures, while the next ones are opened
        yield recipes, made


def _smaller(media: Media) -> Media:
    """Downscale a picture that has more pixels than an encoder uses."""
    if not isinstance(media, Image) or (factor := min(media.size) // ENOUGH) < 2:
        return media
    return Image(media.pil.reduce(factor)).attach(media.recipe, media.path)


def parts(pictures: Iterable[Any]) -> Iterator[list[Any]]:
    """Batches, one per request: of images in memory up to the request's limit, of files a few, which are opened
    here.
    """
    held: list[Any] = []
    room = MAX_PICTURES
    for each in pictures:
        if isinstance(each, str | Path):
            held.append(_smaller(Image.open(each)))
            room = min(room, BATCH)
        else:
            held.append(each)  # the generator's inputs check it
        if len(held) >= room:
            yield held
            held, room = [], MAX_PICTURES
    if held:
        yield held
