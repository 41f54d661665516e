"""Small square pictures with a label each, for models that are told a class: the emoji of things, or a person's folder.

Knows nothing of models and loads no torch.

Try it: `labelled.folder(Path("photos"), 32)` takes `photos/cat/1.png` as a picture of the class `cat`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from studio.errors import MediaError, StudioError
from studio.media import Image
from studio_datasets import build
from studio_datasets.record import on_white

GROUPS = ("animals", "food")
"""The emoji groups of the default set: what most people recognise at 32 pixels."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")


def things(data: Path, size: int) -> tuple[np.ndarray, list[str]]:
    """The emoji of animals and foods that may be trained on, of the data set in `data` (`studio train data`).

    Returns:
        uint8 (N, size, size, 3) on white, and the N labels, each once.
    """
    pictures, records = build.load(data)
    rows = [
        index for index, record in enumerate(records)
        if record["source"] == "emoji" and record["group"] in GROUPS and record["split"] == "train"
    ]  # fmt: skip
    if not rows:
        raise StudioError(f"`{data}` has no emoji of {' or '.join(GROUPS)}", hint="make it with `studio train data`")
    small = [on_white(PIL.Image.fromarray(pictures[index]), size) for index in rows]
    return np.stack(small), [records[index]["label"] for index in rows]


def folder(path: Path, size: int) -> tuple[np.ndarray, list[str]]:
    """The pictures below a folder, fitted on white squares; one in a folder of its own has that folder's name as label.

    Returns:
        uint8 (N, size, size, 3), and N labels; all are empty where the pictures lie in `path` itself.

    Raises:
        StudioError: there is no picture, one cannot be read or is too large, or only some lie in folders.
    """
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
    if not files:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise StudioError(
            f"`{path}` has no pictures ({kinds})", hint="name a folder of pictures, or of folders of them"
        )
    labels = [each.relative_to(path).parts[0] if each.parent != path else "" for each in files]
    if "" in labels and any(labels):
        loose = files[labels.index("")]
        raise StudioError(
            f"`{loose}` lies beside folders of pictures: it has no label",
            hint="put every picture into a folder named as its label, or all into one folder for no labels",
        )
    return np.stack([_read(file, size) for file in files]), labels


def _read(file: Path, size: int) -> np.ndarray:
    try:
        return on_white(Image.open(file).pil, size)  # upright, in 8 bits
    except MediaError as error:
        raise StudioError(error.message, hint="remove it, or save it anew as a PNG") from None
