"""Animated pictures: WebP, GIF, animated PNG and AVIF, with a text in the file.

PNG is lossless, WebP and AVIF nearly so; GIF has 256 colours and counts in hundredths of a second, so at 12 frames per
second a frame lasts 0.08 s, and above 50 it lasts 0.02 s: players show shorter frames for a tenth of a second. Frame
durations are rounded to milliseconds.

Try it: `write(frames, 12, ".webp", "hello")`
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from studio.errors import MediaError
from studio.media import pictures, png
from studio.media.base import check_decoded, damaged

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import PIL.PngImagePlugin
    from numpy.typing import NDArray

    from studio.media.label import Label

FORMATS = {".webp": "WEBP", ".gif": "GIF", ".png": "PNG", ".avif": "AVIF"}
READ = "GIF, WebP, animated PNG, AVIF"
FRAME_BYTES = 64 << 10  # the minimum that a frame counts: many small ones cost time, not memory
_UNTIMED = 100  # ms for which players show a frame of duration 0
_DESCRIPTION = 0x010E  # EXIF's ImageDescription
_GIF_XMP = b"!\xff\x0bXMP DataXMP"  # begins the extension with an XMP packet
_GIF_XMP_END = b"\x01\xff\xfe"
_HOW: dict[str, dict[str, Any]] = {
    ".webp": {"quality": 90, "method": 4},
    ".gif": {"optimize": False, "disposal": 1},
    ".png": {},
    ".avif": {"quality": 90, "subsampling": "4:4:4", "speed": 8, "max_threads": 1},
}


def write(
    frames: Iterable[PIL.Image.Image | NDArray[np.uint8]],
    fps: float,
    suffix: str,
    text: str,
    label: Label | None = None,
) -> bytes:
    """Encode frames, uint8 (T, H, W, 3), in the format of the suffix, looping forever; `text` is ASCII.

    Raises MediaError if Pillow was built without the format.
    """
    import PIL.features
    import PIL.Image

    if suffix == ".avif" and not PIL.features.check("avif"):
        raise MediaError("the installed Pillow cannot write AVIF", hint="update Pillow, or choose another format")
    first, *others = (each if isinstance(each, PIL.Image.Image) else PIL.Image.fromarray(each) for each in frames)
    how = dict(_HOW[suffix])
    if text and suffix in (".webp", ".avif"):
        exif = PIL.Image.Exif()
        exif[_DESCRIPTION] = text
        how["exif"] = exif
    elif text and suffix == ".gif":
        how["comment"] = text.encode("ascii")
    elif suffix == ".png":
        how["pnginfo"] = _png_texts(text, label)
    if label and suffix in (".webp", ".avif"):
        how["xmp"] = label.xmp().encode()
    if others:
        lasts = max(20, 10 * round(100 / fps)) if suffix == ".gif" else 1000 / fps
        how |= {"save_all": True, "append_images": others, "duration": round(lasts) if suffix == ".avif" else lasts}
        how |= {} if suffix == ".avif" else {"loop": 0}
    buffer = io.BytesIO()
    first.save(buffer, FORMATS[suffix], **how)
    return gif_with_xmp(buffer.getvalue(), label.xmp()) if label and suffix == ".gif" else buffer.getvalue()


def _png_texts(text: str, label: Label | None) -> PIL.PngImagePlugin.PngInfo:
    import PIL.PngImagePlugin

    made = PIL.PngImagePlugin.PngInfo()
    if text:
        made.add_text("studio", text)
    if label:
        made.add_itxt(png.XMP_KEY, label.xmp())
    return made


def gif_with_xmp(gif: bytes, packet: str) -> bytes:
    """The GIF with an XMP packet before its end. Readers that count lengths of blocks skip it by the 258 bytes after it
    (XMP specification, part 3).
    """
    skipping = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
    return b"GIF89a" + gif[6:-1] + _GIF_XMP + packet.encode() + skipping + b";"


@dataclass(frozen=True)
class Header:
    """The structure of an animated picture: width and height, the duration of each frame in ms, and the end offset.

    `size` and `durations` are empty for AVIF, whose structure only its library reads.
    """

    size: tuple[int, int]
    durations: tuple[float, ...]
    end: int


def is_picture(data: bytes) -> bool:
    """Whether the bytes start like a WebP, GIF, PNG or AVIF file."""
    return data[:4] == b"GIF8" or png.is_png(data) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or is_avif(data)


def is_avif(data: bytes) -> bool:
    """Whether the bytes start like an AVIF file, a still image or a sequence."""
    return data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")


def moves(data: bytes) -> bool:
    """Whether it is a picture of such a format with more than one frame; False for damaged files."""
    if is_avif(data):
        return data[8:12] == b"avis"
    try:
        return is_picture(data) and len(header(data).durations) > 1
    except MediaError:
        return False


def header(data: bytes) -> Header:
    """Read the frame count, size and durations without decoding. Raises MediaError if the file is truncated."""
    try:
        if png.is_png(data):
            return _png(data)
        return _gif(data) if data[:4] == b"GIF8" else Header((0, 0), (), len(data)) if is_avif(data) else _webp(data)
    except (IndexError, struct.error):
        raise damaged("the animated picture", READ) from None


def check(data: bytes) -> None:
    """Raise MediaError if an animated picture is too large, before decoding."""
    found = header(data)
    if found.durations:
        pictures.check_pixels(found.size)
        check_frames(len(found.durations), found.size)


def check_frames(count: int, size: tuple[int, int]) -> None:
    """Raise MediaError if the decoded frames exceed the limit."""
    width, height = size
    check_decoded(count * max(width * height * 3, FRAME_BYTES), "the video", f"{count:,} frames of {width}x{height}")


def _png(data: bytes) -> Header:
    """Each fcTL chunk is a frame, up to the number in acTL."""
    claimed, durations, ends = 1, [], 0
    for kind, start, end in png.chunks(data):
        ends = end + 4
        if kind == b"acTL":
            claimed = max(1, struct.unpack_from(">I", data, start)[0])
        elif kind == b"fcTL":
            number, parts = struct.unpack_from(">HH", data, start + 20)
            durations.append(1000 * number / (parts or 100) or _UNTIMED)
    return Header(png.size(data), tuple(durations[:claimed]) or (_UNTIMED,), ends)


def _gif(data: bytes) -> Header:
    """The screen and the frames. Pictures may exceed the screen."""
    width, height = struct.unpack_from("<HH", data, 6)
    durations, lasts, ends = [], 0, 0
    for kind, at, end in gif_blocks(data):
        ends = end
        if kind == b"!" and data[at + 1] == 0xF9:
            lasts = struct.unpack_from("<H", data, at + 4)[0]
        elif kind == b",":
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            width, height = max(width, left + wide), max(height, top + high)
            durations.append(10 * lasts or _UNTIMED)
            lasts = 0
    return Header((width, height), tuple(durations) or (_UNTIMED,), ends)


def gif_blocks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the parts of a GIF after its signature: the screen (b"screen"), extensions (b"!"), pictures (b",")
    and the end (b";"), with their start and end. Raises MediaError or IndexError for a damaged file.
    """
    at = 13 + _palette(data[10])
    yield b"screen", 6, at
    while data[at] != 0x3B:
        begins, kind = at, data[at : at + 1]
        if kind not in (b"!", b","):
            raise damaged("the animated picture", READ)
        at += 2 if kind == b"!" else 11 + _palette(data[at + 9])
        while length := data[at]:
            at += 1 + length
        at += 1
        yield kind, begins, at
    yield b";", at, at + 1


def gif_xmp(data: bytes) -> bytes:
    """The XMP packet of a GIF, or nothing."""
    begins = data.find(_GIF_XMP) if data[:4] == b"GIF8" else -1
    ends = data.find(_GIF_XMP_END, begins)
    return b"" if begins < 0 or ends < 0 else data[begins + len(_GIF_XMP) : ends]


def _palette(packed: int) -> int:
    """The size of a GIF's colour table in bytes, from these flags."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _webp(data: bytes) -> Header:
    """The WebP container: RIFF chunks; VP8X has the canvas, each ANMF is a frame."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise damaged("the animated picture", READ)
    size, durations, at = (0, 0), [], 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 26]
        if kind == b"VP8X":
            size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind == b"VP8 " and size == (0, 0):
            size = (int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF)
        elif kind == b"VP8L" and size == (0, 0):
            packed = int.from_bytes(body[1:5], "little")
            size = (1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
        elif kind == b"ANMF":
            durations.append(int.from_bytes(body[12:15], "little") or _UNTIMED)
        at += 8 + length + length % 2
    return Header(size, tuple(durations) or (_UNTIMED,), end)


@dataclass(frozen=True)
class Animation:
    """An opened animated picture.

    Attributes:
        durations: of each frame, in ms.
        rounding: the rounding error of the durations in ms; GIF counts in hundredths of a second.
        text: the text that `write` added.
        xmp: the XMP packet, or nothing.
    """

    durations: tuple[float, ...]
    rounding: float
    text: str
    xmp: bytes
    _data: bytes
    _profile: bytes | None
    _depth: int

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Read the header and the text. Raises MediaError if the file is damaged or too large."""
        check(data)
        found, profile, depth, text, xmp = header(data), None, 8, "", b""
        if png.is_png(data):
            with suppress(MediaError):  # the colour profile is optional here; still pictures report it
                profile = png.profile(data)
            with suppress(MediaError):
                text = png.read_text(data, "studio") or ""
            with suppress(MediaError):
                xmp = png.xmp(data)
            depth, data = png.depth(data), png.picture(data, moving=True)
        data = data[: found.end]
        with damage_as_media_error(), pictures.opened(data, FORMATS.values()) as picture:
            pictures.check_pixels(picture.size)
            check_frames(int(getattr(picture, "n_frames", 1)) if is_avif(data) else 1, picture.size)
            text = text or next(_texts(picture), "")
            xmp = xmp or pictures.xmp_in(picture) or gif_xmp(data)
        made = cls(found.durations, 5 if data[:4] == b"GIF8" else 1, text, xmp, data, profile, depth)
        return made if found.durations else replace(made, durations=tuple(made._durations()))

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames on white, uint8 (H, W, 3), one at a time. Raises MediaError if the file is damaged."""
        import numpy as np

        count, size = 0, None
        for frame in self._each():
            count += 1
            size = size or frame.size
            if frame.size != size:
                raise MediaError("the animated image has frames of different sizes", hint="save it again")
            yield np.asarray(pictures.on_white(pictures.plain(frame, self._profile, self._depth)[0]))
        if count < len(self.durations):
            raise damaged("the animated picture", READ)

    def _durations(self) -> Iterator[float]:
        """Frame durations of AVIF, which are known only after decoding."""
        for frame in self._each():
            yield float(round(frame.info.get("duration", 0)) or _UNTIMED)

    def _each(self) -> Iterator[PIL.Image.Image]:
        import PIL.ImageSequence

        with damage_as_media_error(), pictures.opened(self._data, FORMATS.values()) as picture:
            frames = PIL.ImageSequence.Iterator(picture)
            if getattr(picture, "default_image", False):
                next(frames)  # a still for programs without animation support; not a frame
            for count, frame in enumerate(frames, 1):
                pictures.check_pixels(frame.size)
                check_frames(count, frame.size)
                frame.load()
                yield frame


@contextmanager
def damage_as_media_error() -> Iterator[None]:
    """Raise MediaError for what Pillow raises for a damaged file."""
    import PIL.Image

    try:
        yield
    except (*pictures.DAMAGED, PIL.Image.DecompressionBombError) as error:
        raise damaged("the animated picture", READ) from error


def _texts(picture: PIL.Image.Image) -> Iterator[str]:
    """Candidates for the text of `write`, by format."""
    described = picture.getexif().get(_DESCRIPTION)
    comment = picture.info.get("comment")
    for found in (described, comment, picture.info.get("studio")):
        if found:
            yield found.decode("ascii", "replace") if isinstance(found, bytes) else str(found)
