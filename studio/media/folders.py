"""Folders of media files, and opening pictures a few at a time, so that long lists fit into memory.

Try it: ``python -c "from studio.media.folders import files_in; print(files_in('docs'))"``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from studio.errors import MediaError, StudioError, UsageError
from studio.media.base import Media
from studio.media.image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
BATCH = 4  # pictures that are open at a time; each needs about 10 MiB in an encoder
BATCH_PIXELS = 8_000_000  # a batch with this many pixels gets no more pictures: they are in memory together


def files_in(
    folder: Path | str, suffixes: Sequence[str] = SUFFIXES, broken: dict[Path, StudioError] | None = None
) -> list[Path]:
    """The files with these suffixes directly in a folder, by name. Unreadable ones (broken links, pipes) are added to
    `broken` with the reason.

    Raises MediaError if the folder cannot be read, and UsageError if it has no files of a known kind.
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
    """Open pictures and yield them in batches that fit into memory. Those that cannot be opened are added to `broken`.

    A batch is cleared when the next one is requested; the caller may remove its pictures before that.
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
