"""Training pictures from a folder, as small squares, with their labels or captions. Loads no torch.

Try it: `labelled(Path("photos"), 32)` reads `photos/cat/1.png` as a picture with the label `cat`
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.errors import MediaError, StudioError
from studio.files import open_regular
from studio.media import Image
from studio.media.folders import SUFFIXES
from studio.media.pictures import square_on_white

MAX_CAPTION_BYTES = 64 << 10

Captioner = Callable[[Any, random.Random], str]
"""Makes a caption from what is known of a picture, each time that it is drawn in training."""


def as_written(caption: str, rng: random.Random) -> str:
    """The caption of a picture that has one: itself."""
    return caption


def files(folder: Path, suffixes: Sequence[str] = SUFFIXES, what: str = "pictures") -> list[Path]:
    """The files in a folder and its subfolders that end with one of `suffixes`, sorted. Raises StudioError if there are
    none.
    """
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in suffixes)
    if not found:
        kinds = ", ".join(suffix[1:] for suffix in suffixes)
        raise StudioError(f"`{folder}` has no {what} ({kinds})", hint=f"name a folder of {what}, or of folders of them")
    return found


def read(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """Pictures, each fitted on a white square: uint8 (N, size, size, 3). Raises StudioError for one that cannot be
    read or is too large.
    """
    return np.stack([_read(path, size) for path in paths])


def labelled(folder: Path, size: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The pictures in a folder, and their labels: the name of the subfolder that each is in.

    Returns:
        uint8 (N, size, size, 3), and N labels; all are empty if the pictures are in `folder` itself.

    Raises:
        StudioError: there is no picture, one cannot be read or is too large, or only some are in subfolders.
    """
    paths = files(folder)
    labels = [_subfolder(path, folder) for path in paths]
    if "" in labels and any(labels):
        loose = paths[labels.index("")]
        raise StudioError(
            f"`{loose}` has no label, because it is not in a subfolder like other pictures",
            hint="put every picture into a folder named as its label, or all into one folder for no labels",
        )
    return read(paths, size), labels


def captioned(folder: Path, size: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The pictures in a folder, uint8 (N, size, size, 3), and N captions; see `caption_of`. Raises StudioError as
    `labelled` does, and for a picture without a caption.
    """
    paths = files(folder)
    captions = [caption_of(path, folder) for path in paths]
    return read(paths, size), captions


def caption_of(path: Path, folder: Path) -> str:
    """The caption of a file in a folder: the text in the `.txt` file of the same name, else the subfolder's name.

    Raises StudioError if it has neither, or if the text cannot be read.
    """
    file = path.with_suffix(".txt")
    try:
        with open_regular(file) as opened:
            data = opened.read(MAX_CAPTION_BYTES + 1)
        if len(data) > MAX_CAPTION_BYTES:
            raise StudioError(f"the caption `{file}` has more than {MAX_CAPTION_BYTES:,} bytes", hint="shorten it")
        text = " ".join(data.decode("utf-8-sig").split())
    except FileNotFoundError:
        text = _subfolder(path, folder)
    except (OSError, UnicodeDecodeError) as error:
        raise StudioError(f"the caption `{file}` cannot be read: {error}", hint="save it as UTF-8 text") from None
    if not text:
        hint = f"write it into `{file.name}` in the same folder, or put the file into a subfolder named by its caption"
        raise StudioError(f"`{path}` has no caption", hint=hint)
    return text


def _subfolder(path: Path, folder: Path) -> str:
    """The name of the subfolder of `folder` that a file is in; empty if it is in `folder` itself."""
    return path.relative_to(folder).parts[0] if path.parent != folder else ""


def _read(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        return square_on_white(Image.open(path).pil, size)  # upright, in 8 bits
    except MediaError as error:
        raise StudioError(error.message, hint="remove it, or save it as a PNG again") from None
