"""The reference pictures that a generator is compared with: a folder in which each subfolder is a label.

Whether the folder is the training set is up to the caller.

Try it: ``studio.evaluation.data.read(Path("pictures"))``
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from studio.errors import UsageError
from studio.media import Image, pictures
from studio.media.folders import SUFFIXES

MOST = 1000  # pictures that one evaluation looks at on either side


@dataclass(frozen=True)
class ReferenceSet:
    """Pictures and their labels (empty without subfolders); `left_out` counts the pictures that were skipped."""

    images: list[Image]
    labels: list[str]
    left_out: int = 0


def read(folder: Path, fewest: int) -> ReferenceSet:
    """Read the pictures below a folder, or a random but fixed selection of `MOST` if there are more.

    Raises UsageError for fewer than `fewest` and if only some have labels, MediaError for one that cannot be read.
    """
    if not folder.is_dir():
        hint = "`--data` must be a folder of images, or of folders of images"
        raise UsageError(f"`{folder}` is not a folder", hint=hint)
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if len(files) < fewest:
        raise UsageError(f"`{folder}` has {len(files)} images; at least {fewest} are needed",
                         hint="use a folder with more images")  # fmt: skip
    labels = [each.relative_to(folder).parts[0] if each.parent != folder else "" for each in files]
    if "" in labels and any(labels):
        loose = files[labels.index("")]
        raise UsageError(f"`{loose}` has no label: it is not in a subfolder, as other images are",
                         hint="put every image into a folder named after its label, or all into one")  # fmt: skip
    kept = sorted(random.Random(0).sample(range(len(files)), min(len(files), MOST)))
    named = [labels[place] for place in kept] if any(labels) else []
    return ReferenceSet([Image.open(files[place]) for place in kept], named, len(files) - len(kept))


def fitted(image: Image, size: int) -> Image:
    """The picture resized (Lanczos) and centred on a white square of `size` pixels."""
    import PIL.Image
    import PIL.ImageOps

    return Image(
        PIL.ImageOps.pad(pictures.on_white(image.pil), (size, size), PIL.Image.Resampling.LANCZOS, color="white")
    )
