"""Decoding pictures with Pillow: upright, in sRGB, 8 bits per sample, as L, RGB or RGBA.

Files are untrusted. The size and the decoder's work are computed from the headers first; text chunks and colour
profiles of a PNG never reach the decoder. Notices report what was assumed or ignored.

Try it: ``python -c "from studio.media.pictures import read; print(read(open('a.png', 'rb').read()).pil)"``
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError
from studio.media import png
from studio.media.base import damaged

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # of a JPEG: each costs as much time as a whole picture; libjpeg writes at most about ten
FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF"
# The exceptions with which Pillow reports a damaged file.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
           AttributeError, RuntimeError, ZeroDivisionError, struct.error, zlib.error)  # fmt: skip
_SAME = 2  # levels by which a profile may differ from sRGB and still count as sRGB (rounding)
_BAND = 1 << 20  # pixels per conversion


@dataclass(frozen=True)
class Picture:
    """A decoded picture, L, RGB or RGBA, with notices about assumptions, the description in its EXIF data and its XMP
    packet.
    """

    pil: PIL.Image.Image
    notices: tuple[str, ...] = ()
    description: str = ""
    xmp: bytes = b""


def read(data: bytes) -> Picture:
    """Decode the first frame of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file. Raises MediaError."""
    import PIL.Image

    notices: list[str] = []
    depth, profile, xmp = 8, None, b""
    if png.is_png(data):
        check_pixels(png.size(data))
        depth, profile = png.depth(data), _profile(data, notices)
        xmp = _xmp(data, notices)
        data = png.picture(data)
    elif data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_SCANS:  # coded pixels never contain FF DA
        raise MediaError(f"the JPEG has more than {MAX_SCANS} scans, the limit", hint="save it again")
    try:
        with opened(data) as image:
            check_pixels(image.size)
            image.load()
            xmp = xmp or xmp_in(image)
            description = _turn(image, notices)
            made, more = plain(image, profile, depth)
    except PIL.Image.DecompressionBombError:
        raise MediaError(f"the picture has more than {MAX_PIXELS:,} pixels, the limit") from None
    except DAMAGED as error:
        raise damaged("the picture", FORMATS) from error
    return Picture(made, (*notices, *more), description, xmp)


def decode(data: bytes, put: Callable[[str, bytes], None]) -> dict[str, Any]:
    """Decode a picture, as a task of `sandbox`: `put` gets its rows ("frames"). Returns `mode`, `size`, `notices`,
    `description` and `xmp`. Raises MediaError.
    """
    found = read(data)
    width, height = found.pil.size
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):  # copying all at once would double the memory of a large picture
        put("frames", found.pil.crop((0, top, width, min(height, top + rows))).tobytes())
    said = {"description": found.description, "xmp": found.xmp.decode("utf-8", "replace")}
    return {"mode": found.pil.mode, "size": found.pil.size, "notices": found.notices, **said}


def read_isolated(data: bytes) -> Picture:
    """As `read`, in a process with limited memory and time. Raises MediaError."""
    import PIL.Image

    from studio.media import sandbox

    if png.is_png(data):
        check_pixels(png.size(data))
    found, pieces = sandbox.run("picture", data, "the picture")
    size = (int(found["size"][0]), int(found["size"][1]))
    pil = PIL.Image.frombuffer(found["mode"], size, pieces["frames"], "raw", found["mode"], 0, 1).copy()
    return Picture(pil, tuple(found["notices"]), found["description"], found["xmp"].encode())


def opened(data: bytes, formats: Iterable[str] = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")) -> Any:
    """Open a picture with Pillow, which loads no pixels yet. Raises Pillow's exceptions."""
    import warnings

    import PIL.Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `check_pixels` is stricter, and oddities need no warning
        return PIL.Image.open(io.BytesIO(data), formats=list(formats))


def xmp_in(image: PIL.Image.Image) -> bytes:
    """The XMP packet that Pillow has found in a JPEG, WebP, TIFF or AVIF, or nothing."""
    found = image.info.get("xmp")
    return found if isinstance(found, bytes) else b""


def check_pixels(size: tuple[int, int]) -> None:
    """Raise MediaError for a picture without pixels, or with too many."""
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"a picture must have at least one pixel, not {width}x{height}")
    if width * height > MAX_PIXELS:
        raise MediaError(f"the picture has {width}x{height} pixels; the limit is {MAX_PIXELS:,} in total")


def plain(pil: PIL.Image.Image, profile: bytes | None = None, depth: int = 8) -> tuple[PIL.Image.Image, list[str]]:
    """A copy in L, RGB or RGBA, 8 bits, sRGB, and notices about assumptions.

    Args:
        profile: the colour profile, if `pil.info` has none.
        depth: bits per sample in the file, which are the units of a PNG's colour key.
    """
    notices: list[str] = []
    profile = profile or pil.info.get("icc_profile")
    key = pil.info.get("transparency")
    if pil.mode.startswith("I") or pil.mode == "F":
        made = _to_8_bits(pil, notices)
        if isinstance(key, int):
            made = _keyed(made, _grey(pil) == key)
    elif pil.mode in ("1", "L", "RGB") and isinstance(key, int | tuple):
        made = _keyed(pil, _has_colour(pil, key, depth))
    elif pil.mode in ("L", "RGB", "RGBA", "CMYK", "LAB"):
        made = pil.copy()
    else:
        clear = pil.mode in ("LA", "PA", "La", "RGBa") or key is not None
        made = pil.convert("RGBA" if clear else "L" if pil.mode == "1" else "RGB")
    if profile or made.mode == "LAB":
        made = _managed(made, profile, pil.mode, notices)
    if made.mode == "CMYK":
        made = made.convert("RGB")
    made.info = {}  # the canonical file must not contain colour profiles or text
    return made, notices


def on_white(pil: PIL.Image.Image) -> PIL.Image.Image:
    """The picture as RGB; transparent parts become white."""
    import PIL.Image

    if pil.mode == "RGB":
        return pil
    rgba = pil.convert("RGBA")
    white = PIL.Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def square_on_white(pil: PIL.Image.Image, size: int) -> NDArray[np.uint8]:
    """The picture on a white square, its longest side fitted, centred: uint8 (size, size, 3)."""
    import numpy as np
    import PIL.Image

    rgb = on_white(pil)
    side = max(rgb.size)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
    return np.asarray(square.resize((size, size), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0))


def _turn(image: PIL.Image.Image, notices: list[str]) -> str:
    """Rotate the picture by its EXIF orientation, and return the EXIF description."""
    import PIL.ImageOps

    try:
        description = image.getexif().get(0x010E, "")
        PIL.ImageOps.exif_transpose(image, in_place=True)
    except DAMAGED:
        notices.append("the picture's EXIF data is damaged: it was not rotated")
        return ""
    return description if isinstance(description, str) else ""


def _xmp(data: bytes, notices: list[str]) -> bytes:
    try:
        return png.xmp(data)
    except MediaError as error:
        notices.append(f"the picture's XMP metadata was ignored: {error.message}")
        return b""


def _profile(data: bytes, notices: list[str]) -> bytes | None:
    try:
        return png.profile(data)
    except MediaError as error:
        notices.append(f"the picture's colour profile was ignored: {error.message}")
        return None


def _grey(pil: PIL.Image.Image) -> NDArray[Any]:
    import numpy as np

    return np.asarray(pil)


def _has_colour(pil: PIL.Image.Image, key: Any, depth: int) -> NDArray[np.bool_]:
    """The mask of pixels with the colour of a PNG's tRNS chunk, whose samples have `depth` bits: bool (H, W)."""
    import numpy as np

    if pil.mode == "1":
        return np.asarray(np.asarray(pil) == bool(key))
    if pil.mode == "L":
        return np.asarray(np.asarray(pil) == key * 255 // max(1, 2 ** min(depth, 8) - 1))
    colour = [each >> 8 if depth == 16 else each for each in key]  # Pillow keeps the upper 8 bits of 16
    return np.asarray((np.asarray(pil) == np.array(colour)).all(axis=-1))


def _keyed(pil: PIL.Image.Image, clear: NDArray[np.bool_]) -> PIL.Image.Image:
    """The picture with an alpha channel that is 0 where `clear`."""
    import numpy as np
    import PIL.Image

    made = pil.convert("RGB")
    made.putalpha(PIL.Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return made


def _to_8_bits(pil: PIL.Image.Image, notices: list[str]) -> PIL.Image.Image:
    """Convert 16-bit, 32-bit or float grey to 8 bits. Raises MediaError if the range of the values is unknown."""
    import numpy as np
    import PIL.Image

    array = np.asarray(pil)
    scale = 255 / _white(array, pil.mode, notices)
    made = np.empty(array.shape, np.uint8)
    rows = max(1, _BAND // array.shape[1])
    for top in range(0, len(array), rows):
        band = array[top : top + rows].astype(np.float32)
        made[top : top + rows] = (band * np.float32(scale)).round().clip(0, 255)
    return PIL.Image.fromarray(made)


def _white(array: NDArray[Any], mode: str, notices: list[str]) -> float:
    """The value of white."""
    most = float(array.max())
    if mode.startswith("I;16"):
        return 65535.0
    if not most - float(array.min()) < float("inf"):  # NaN too
        raise MediaError("the picture has pixels that are not finite numbers", hint="save it with finite values")
    if mode == "I":
        white = next((top for top in (255.0, 65535.0) if most <= top), float(2**31 - 1))
        white = 65535.0 if most == 0 else white
    else:
        white = next((top for limit, top in ((8, 1.0), (255, 255.0), (65535, 65535.0)) if most <= limit), 0.0)
        if not white:
            raise MediaError(f"the picture's floats go up to {most:g}; the maximum must be 1, 255 or 65535",
                             hint="scale them to 0 to 1")  # fmt: skip
    if mode == "F" and (most > 1 or float(array.min()) < 0):
        notices.append(
            f"the picture's floats go from {array.min():g} to {most:g}: {white:g} was taken as white, and values "
            "outside were clipped"
        )
    return white


def _managed(pil: PIL.Image.Image, profile: bytes | None, was: str, notices: list[str]) -> PIL.Image.Image:
    """Convert the colours to sRGB; unchanged if the profile is sRGB, damaged, or of another colour space."""
    import PIL.ImageCms

    alpha = pil.getchannel("A") if pil.mode == "RGBA" else None
    grey = pil.mode == "L" or was in ("LA", "La")
    source = pil.convert("L") if grey else pil.convert("RGB") if pil.mode == "RGBA" else pil
    try:
        if profile and len(profile) > png.MAX_PROFILE_BYTES:
            raise PIL.ImageCms.PyCMSError("too large")
        transform = _transform(profile, source.mode)
        if profile and source.mode in ("L", "RGB") and _is_srgb(profile, source.mode):
            return pil
        made = PIL.ImageCms.applyTransform(source, transform)
    except (PIL.ImageCms.PyCMSError, *DAMAGED):
        if pil.mode == "LAB":
            raise
        notices.append("the picture's colour profile cannot be used, and was ignored")
        return pil
    assert made is not None
    if grey:
        made = made.getchannel("R")
    if alpha is not None:
        made = made.convert("RGB")
        made.putalpha(alpha)
    notices.append("the picture's colours were converted to sRGB from its colour profile" if profile else
                   "the picture's Lab colours were converted to sRGB")  # fmt: skip
    return made


def _transform(profile: bytes | None, mode: str) -> Any:
    """The transform from a profile, or Lab, to sRGB. Raises PyCMSError for a damaged or unsuitable profile."""
    import PIL.ImageCms as Cms

    source = Cms.createProfile("LAB") if profile is None or mode == "LAB" else Cms.ImageCmsProfile(io.BytesIO(profile))
    return Cms.buildTransform(source, Cms.createProfile("sRGB"), mode, "RGB")


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """Whether the profile is sRGB, by its effect on colours, not by its name; the pixels are then kept exactly."""
    import numpy as np
    import PIL.Image
    import PIL.ImageCms

    steps = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    grid = steps[None] if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    made = PIL.ImageCms.applyTransform(PIL.Image.fromarray(grid), _transform(profile, mode))
    found = np.asarray(made)[..., 0] if mode == "L" else np.asarray(made)
    return int(np.abs(found.astype(int) - grid).max()) <= _SAME
