"""Frames as animated pictures: WebP, GIF and animated PNG, with a text in the file. Knows nothing of recipes.

PNG keeps every pixel, WebP nearly; GIF has 256 colours and counts in hundredths of a second, so 12 frames a second last
0.08 s each there, and more than 50 last 0.02 s: players take less for a mistake and show a tenth of a second. They show
each frame for a whole number of milliseconds.

Try it: `write(frames, 12, ".webp", "hello")`
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

FORMATS = {".webp": "WEBP", ".gif": "GIF", ".png": "PNG"}
# How Pillow says that a file is damaged.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error)
_UNTIMED = 100  # ms that players show a frame which lasts 0
_DESCRIPTION = 0x010E  # EXIF's ImageDescription
_HOW: dict[str, dict[str, Any]] = {
    ".webp": {"quality": 90, "method": 4},
    ".gif": {"optimize": False, "disposal": 1},
    ".png": {},
}


def write(frames: NDArray[np.uint8], fps: float, suffix: str, text: str) -> bytes:
    """The frames, uint8 (T, H, W, 3), as a file of the format with that suffix, without end; `text` is ASCII."""
    import PIL.Image
    import PIL.PngImagePlugin

    first, *others = (PIL.Image.fromarray(frame) for frame in frames)
    how = dict(_HOW[suffix])
    if text and suffix == ".webp":
        exif = PIL.Image.Exif()
        exif[_DESCRIPTION] = text
        how["exif"] = exif
    elif text and suffix == ".gif":
        how["comment"] = text.encode("ascii")
    elif text:
        how["pnginfo"] = PIL.PngImagePlugin.PngInfo()
        how["pnginfo"].add_text("studio", text)
    lasts = max(20, 10 * round(100 / fps)) if suffix == ".gif" else 1000 / fps
    buffer = io.BytesIO()
    first.save(buffer, FORMATS[suffix], save_all=True, append_images=others, duration=lasts, loop=0, **how)
    return buffer.getvalue()


def is_picture(data: bytes) -> bool:
    """Whether the bytes begin as a WebP, GIF or PNG file does."""
    return data[:4] == b"GIF8" or data[:8] == b"\x89PNG\r\n\x1a\n" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def moves(data: bytes) -> bool:
    """Whether it is a picture of such a format with more than one frame; what is damaged has none."""
    import PIL.Image

    if not is_picture(data):
        return False
    try:
        with PIL.Image.open(io.BytesIO(data), formats=tuple(FORMATS.values())) as picture:
            return int(getattr(picture, "n_frames", 1)) > 1
    except (*_DAMAGED, PIL.Image.DecompressionBombError):
        return False


def read(data: bytes, most: int) -> tuple[list[NDArray[np.uint8]], float, str]:
    """Frames on white, frames a second, and the text that `write` put there.

    A frame that lasts as long as several others is several equal frames, which Pillow and libwebp write as one.

    Raises MediaError if the file is damaged, its frames have no rate in common, or they take more than `most` bytes.
    """
    import numpy as np
    import PIL.Image
    import PIL.ImageSequence

    if not _whole(data):
        raise MediaError("the animated picture is truncated: its end is missing")
    too_large = MediaError(f"the video holds more than {most:,} bytes of frames")
    frames, durations = [], []
    try:
        with PIL.Image.open(io.BytesIO(data), formats=list(FORMATS.values())) as picture:
            width, height = picture.size
            if width * height * 3 * getattr(picture, "n_frames", 1) > most:
                raise too_large
            for frame in PIL.ImageSequence.Iterator(picture):
                frames.append(np.asarray(_on_white(frame)))
                durations.append(round(frame.info.get("duration", 0)) or _UNTIMED)
            text = next(_texts(picture), "")
            rounded = 5 if picture.format == "GIF" else 1  # it counts in hundredths of a second
    except _DAMAGED as error:
        raise MediaError(f"the animated picture is truncated or damaged: {error}") from None
    length, counts = _repeats(durations, rounded)
    if width * height * 3 * sum(counts) > most:
        raise too_large
    shown = [frame for frame, count in zip(frames, counts, strict=True) for _ in range(count)]
    return shown, 1000 / max(length, 5), text


def _repeats(durations: list[int], rounded: int) -> tuple[float, list[int]]:
    """How many ms a frame lasts, and how many frames each stands for; durations are off by up to `rounded` ms.

    Raises MediaError where they are not multiples of the shortest.
    """
    least = max(min(durations), 5)
    counts = [max(1, round(each / least)) for each in durations]
    length = sum(durations) / sum(counts)
    if any(abs(each - count * length) > rounded for each, count in zip(durations, counts, strict=True)):
        raise MediaError(
            f"the frames last from {min(durations)} to {max(durations)} ms; a video has one rate",
            hint="write it anew with frames of one length",
        )
    return length, counts


def _whole(data: bytes) -> bool:
    """Whether the file ends as its format says; Pillow shows what there is of one that does not."""
    if data[:4] == b"RIFF":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return data.rstrip(b"\0").endswith(b";") if data[:4] == b"GIF8" else b"IEND" in data[-12:]


def _on_white(frame: PIL.Image.Image) -> PIL.Image.Image:
    import PIL.Image

    white = PIL.Image.new("RGBA", frame.size, (255, 255, 255, 255))
    white.alpha_composite(frame.convert("RGBA"))
    return white.convert("RGB")


def _texts(picture: PIL.Image.Image) -> Iterator[str]:
    """What may be the text of `write`, from wherever the format keeps it."""
    described = picture.getexif().get(_DESCRIPTION)
    comment = picture.info.get("comment")
    for found in (described, comment, picture.info.get("studio")):
        if found:
            yield found.decode("ascii", "replace") if isinstance(found, bytes) else str(found)
