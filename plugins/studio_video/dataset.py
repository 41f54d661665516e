"""Training clips from a folder of videos: frames at one rate, on white squares, with their captions. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from studio.errors import MediaError, StudioError
from studio.media import Video
from studio.media.pictures import square_on_white
from studio.training import pictures

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", *Video.others)
FPS = 12.0
"""Frames per second of training clips; also the default of `studio video`."""


def captioned(folder: Path, size: int) -> tuple[Iterator[NDArray[np.uint8]], list[str]]:
    """The videos in a folder, opened one after the other, as `frames_of` gives them, and the caption of each.

    Raises StudioError if there are none, for one that cannot be read, and for one without a caption.
    """
    paths = pictures.files(folder, SUFFIXES, "videos")
    captions = [pictures.caption_of(path, folder) for path in paths]
    return (_read(path, size) for path in paths), captions


def frames_of(frames: NDArray[np.uint8], rate: float, fps: float, size: int) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) of `rate` a second at `fps` a second, each fitted on a white square: uint8 (T', size, size,
    3), at least one.
    """
    count = max(1, round(len(frames) * fps / rate))
    shown = (frames[min(int(index * rate / fps), len(frames) - 1)] for index in range(count))
    return np.stack([square_on_white(PIL.Image.fromarray(each), size) for each in shown])


def _read(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        video = Video.open(path)
    except MediaError as error:
        raise StudioError(error.message, hint="remove it, or convert it to MP4") from None
    return frames_of(video.frames, video.fps, FPS, size)
