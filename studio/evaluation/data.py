"""The pictures that a generator is compared with: a folder of them, each subfolder a label.

It knows nothing of how a generator was trained; that the folder is what it was trained on is the caller's word.

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
    """Pictures, and the label of each (none at all where they lie in no subfolders); `left_out` counts the rest."""

    images: list[Image]
    labels: list[str]
    left_out: int = 0


def read(folder: Path, fewest: int) -> ReferenceSet:
    """Read the pictures below a folder, at most `MOST` of them, chosen at random but always the same.

    Raises UsageError for fewer than `fewest` and where only some have labels, MediaError for one that cannot be read.
    """
    if not folder.is_dir():
        hint = "`--data` takes a folder of images, or of folders of images"
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
    """The picture centred on a white square of `size` pixels, by Lanczos: how pictures of all sizes become alike."""
    import PIL.Image
    import PIL.ImageOps

    return Image(
        PIL.ImageOps.pad(pictures.on_white(image.pil), (size, size), PIL.Image.Resampling.LANCZOS, color="white")
    )
