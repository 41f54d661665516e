"""The animated Fluent emoji, as frames at a fixed rate.

Reads the packages that `fetch.py` downloads: WebP files of 256x256 named by code points, most of them three seconds
long, many of them stills. Base forms are those for which `emoji.py` creates records.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image

from recipes.data import emoji
from studio.media import clips


def files(packages: Iterable[Path]) -> dict[str, Path]:
    """The file of each emoji by its record's id, in unpacked `@lobehub/fluent-emoji-anim-N` (`assets/*.webp`)."""
    found = (path for package in packages for path in sorted((package / "assets").glob("*.webp")))
    return {f"emoji-{emoji.code(path.stem)}": path for path in found}


def read(path: Path, fps: float, size: int) -> np.ndarray:
    """The frames of a file at `fps` per second: uint8 (T, size, size, 3) on white; one frame for a still.

    Raises MediaError if the file is damaged or too large.
    """
    pixels = bytearray()
    found = clips.decode(path.read_bytes(), lambda _, body: pixels.extend(body))
    (width, height), rate = found["size"], found["fps"]
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3)
    count = max(1, round(len(frames) * fps / rate))
    shown = (frames[min(int(index * rate / fps), len(frames) - 1)] for index in range(count))
    side = (size, size)
    return np.stack(
        [np.asarray(PIL.Image.fromarray(each).resize(side, PIL.Image.Resampling.LANCZOS)) for each in shown]
    )
