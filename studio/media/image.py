"""Pictures: `Image`, 8-bit pixels that read many formats and write PNG with the recipe in it.

This module knows nothing of generators or stores; `pictures` decodes the files.

Try it: ``python -c "import studio; print(studio.Image.open('a.png').size)"``
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Self

from studio.caching import cached_property
from studio.errors import MediaError
from studio.media import png
from studio.media.base import Media

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    from studio.recipe import Recipe

MAX_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Image(Media):
    """A picture of 8-bit grey (L), RGB or RGBA pixels, at most 50 megapixels.

    `Image(pil)` converts other Pillow modes (palettes to RGB or RGBA, 16-bit grey to 8-bit); `from_array` takes
    uint8 (H, W), (H, W, 3) or (H, W, 4). Raises MediaError for an empty or too large picture.
    """

    media_type, suffix, kind, noun = "image/png", ".png", "image", "a picture"

    def __init__(self, pil: PIL.Image.Image) -> None:
        _check_pixels(pil.size)
        self._pil = _plain_mode(pil)

    @classmethod
    def from_array(cls, array: NDArray[np.uint8]) -> Self:
        """Make a picture of uint8 pixels, (H, W), (H, W, 3) or (H, W, 4). Raises MediaError for other shapes."""
        import PIL.Image

        shape, kind = tuple(array.shape), str(array.dtype)
        if kind != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise MediaError(f"pixels must be uint8 (H, W), (H, W, 3) or (H, W, 4), not {kind} {shape}")
        return cls(PIL.Image.fromarray(array))

    @property
    def pil(self) -> PIL.Image.Image:
        """A Pillow copy of the picture, yours to change."""
        return self._pil.copy()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._pil.size

    @property
    def mode(self) -> str:
        """``L``, ``RGB`` or ``RGBA``."""
        return self._pil.mode

    def samples(self) -> NDArray[np.generic]:
        """The pixels, uint8 (H, W) or (H, W, C)."""
        import numpy as np

        return np.asarray(self._pil)

    @cached_property
    def data(self) -> bytes:
        """The picture as PNG without any text chunk."""
        buffer = io.BytesIO()
        self._pil.save(buffer, "PNG", compress_level=4)
        return buffer.getvalue()

    def file_bytes(self) -> bytes:
        """The PNG with the recipe in the chunk `studio` and the `parameters` text that other tools read."""
        if self.recipe is None:
            return self.data
        texts = {"studio": self.recipe.portable().to_json()}
        if parameters := self.recipe.parameters_text():
            texts["parameters"] = parameters
        return png.with_text(self.data, texts)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF; a recipe that Studio wrote comes with it.

        Raises MediaError if the format is unknown, the file truncated, or the picture larger than 50 megapixels
        (known from the header, before any pixel is decoded).
        """
        return cls(_decode_pil(data)).attach(recipe_in(data), None)

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The identity of the picture in these bytes, which its file's text chunks do not change."""
        return cls(_decode_pil(file)).sha256

    def _content(self) -> bytes:
        head = f"image {self.mode} {self.size[0]}x{self.size[1]}\n"
        return head.encode() + self._pil.tobytes()


def recipe_in(data: bytes) -> Recipe | None:
    """Return the recipe that a PNG file carries, or None if the bytes are no PNG or carry none. Raises MediaError."""
    if not png.is_png(data):
        return None
    text = png.read_text(data, "studio")
    if text is None:
        return None
    from studio.recipe import Recipe

    return Recipe.parse(text)


def _decode_pil(data: bytes) -> PIL.Image.Image:
    """Decode the first frame with Pillow, upright (EXIF orientation applied); the size is checked before the pixels."""
    import struct
    import warnings
    import zlib

    import PIL.Image
    import PIL.ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # _check_pixels is stricter
            with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_pixels(image.size)
                image.load()
                return PIL.ImageOps.exif_transpose(image)
    except PIL.UnidentifiedImageError:
        raise MediaError("not a picture in a known format (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except PIL.Image.DecompressionBombError:
        raise MediaError(f"the picture has more than {MAX_PIXELS:,} pixels, the most that is read") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise MediaError(f"the picture is truncated or damaged: {error}") from None


def _check_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"a picture has at least one pixel, not {width}x{height}")
    if width * height > MAX_PIXELS:
        raise MediaError(f"the picture has {width}x{height} pixels; at most {MAX_PIXELS:,} in all are read")


def _plain_mode(pil: PIL.Image.Image) -> PIL.Image.Image:
    """Copy into L, RGB or RGBA."""
    import PIL.Image

    if pil.mode in ("L", "RGB", "RGBA"):
        plain = pil.copy()
        plain.info = {}  # neither colour profiles nor text may slip into the canonical file
        return plain
    if pil.mode.startswith("I") or pil.mode == "F":
        import numpy as np

        scale = 1 / 257 if pil.mode.startswith("I") else 1.0
        return PIL.Image.fromarray((np.asarray(pil, dtype=np.float64) * scale).round().clip(0, 255).astype(np.uint8))
    clear = pil.mode in ("LA", "PA", "La", "RGBa") or "transparency" in pil.info
    plain = pil.convert("RGBA" if clear else "L" if pil.mode == "1" else "RGB")
    plain.info = {}
    return plain
