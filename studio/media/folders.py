"""Folders of media files, and pictures opened a few at a time, so that a long list of them fits into memory.

This module knows nothing of what is done with them.

Try it: ``python -c "from studio.media.folders import files_in; print(files_in('docs'))"``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from studio.errors import MediaError, StudioError, UsageError
from studio.media.base import Media
from studio.media.image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
BATCH = 4  # pictures that are opened together; each costs an encoder some 10 MiB meanwhile
BATCH_PIXELS = 8_000_000  # no picture is added to those that hold so many pixels: they are in memory together


def files_in(
    folder: Path | str, suffixes: Sequence[str] = SUFFIXES, broken: dict[Path, StudioError] | None = None
) -> list[Path]:
    """The files directly in a folder that end so, by name. What cannot be read there (a link to nothing or to itself, a
    pipe) goes into `broken`, with the reason.

    Raises MediaError if the folder cannot be read, and UsageError if it holds nothing of a known kind.
    """
    found: list[Path] = []
    faults: dict[Path, StudioError] = {}
    try:
        named = sorted(each for each in Path(folder).iterdir() if each.suffix.lower() in suffixes)
    except OSError as error:
        raise MediaError(f"cannot read the folder `{folder}`: {error.strerror or error}") from None
    for path in named:
        try:
            path.stat()
        except OSError as error:
            faults[path] = MediaError(f"cannot read `{path}`: {error.strerror or error}")
            continue
        if path.is_file():
            found.append(path)
        elif not path.is_dir():
            faults[path] = MediaError(f"cannot read `{path}`: it is not a regular file")
    if not (found or faults):
        raise UsageError(f"the folder `{folder}` has no files of a known kind", hint=f"known: {', '.join(suffixes)}")
    if broken is not None:
        broken |= faults
    return found


def few_at_a_time(
    paths: Iterable[Path], broken: dict[Path, StudioError], opened: Callable[[Path], Media] = Image.open
) -> Iterator[dict[Path, Image]]:
    """Open pictures, and yield as many together as may be in memory. What cannot be opened goes into `broken`.

    The yielded pictures are let go of when the next are asked for; the caller may take them out before.
    """
    held: dict[Path, Image] = {}
    for path in paths:
        try:
            picture = opened(path)
        except StudioError as error:
            broken[path] = error
            continue
        assert isinstance(picture, Image)
        held[path] = picture
        del picture
        if len(held) >= BATCH or sum(each.size[0] * each.size[1] for each in held.values()) >= BATCH_PIXELS:
            yield held
            held.clear()
    if held:
        yield held
