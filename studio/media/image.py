"""Pictures: `Image`, 8-bit pixels, read from many formats and written as PNG with the recipe in its metadata.

`pictures` decodes the files.

Try it: ``python -c "import studio; print(studio.Image.open('a.png').size)"``
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from studio.caching import cached_property
from studio.errors import MediaError, describe
from studio.media import animation, arrays, label, pictures, png
from studio.media.base import UNREAD, Media, recipe_json, recipe_of

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    from studio.recipe import Recipe

AVIF = ".avif"


class Image(Media):
    """A picture of 8-bit grey (L), RGB or RGBA pixels, at most 50 megapixels.

    `Image(pil)` converts other Pillow modes (palettes to RGB or RGBA, 16-bit grey to 8-bit), and colours to sRGB by
    the profile in `pil.info`; `from_array` accepts uint8 (H, W), (H, W, 3) or (H, W, 4). `save` writes AVIF, which is
    lossy, if the file name ends in ``.avif``. Raises MediaError for an empty or too large picture.
    """

    media_type, suffix, kind, noun = "image/png", ".png", "image", "a picture"
    has_label = True
    others = (AVIF,)
    also = ", a PIL picture, an array, a tensor"

    def __init__(self, pil: PIL.Image.Image) -> None:
        pictures.check_pixels(pil.size)
        self._pil, notices = pictures.plain(pil)
        self._notices = tuple(notices)

    @classmethod
    def from_array(cls, array: NDArray[np.uint8]) -> Self:
        """Create a picture from uint8 pixels, (H, W), (H, W, 3) or (H, W, 4). Raises MediaError for other shapes."""
        import PIL.Image

        shape, kind = tuple(array.shape), str(array.dtype)
        if kind != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise MediaError(f"pixels must be uint8 (H, W), (H, W, 3) or (H, W, 4), not {kind} {shape}")
        return cls(PIL.Image.fromarray(array))

    @classmethod
    def accept(cls, value: object) -> Self:
        """Convert an input's value: an `Image`, a Pillow image, the path of a file, or an array or tensor of uint8 or
        of floats from 0 to 1, (H, W), (H, W, C) or (C, H, W). Raises ValueError, MediaError.
        """
        if arrays.is_pil(value):
            try:
                return cls(value)
            except pictures.DAMAGED as error:  # Pillow loads pixels lazily
                raise ValueError(f"it cannot be read: {describe(error)}") from error
        if arrays.is_array(value):
            return cls.from_array(arrays.pixels(value))
        return super().accept(value)

    @property
    def pil(self) -> PIL.Image.Image:
        """A copy as a Pillow image, which you may change."""
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

    def _repr_png_(self) -> bytes:
        """The PNG that a notebook shows."""
        return self.data

    def file_bytes(self) -> bytes:
        """The PNG with the recipe in the text chunk `studio`, the `parameters` text that other tools read, and the AI
        label in an XMP packet.
        """
        texts = {}
        if self.recipe is not None:
            texts["studio"] = self.recipe.portable().to_json()
            if parameters := self.recipe.parameters_text():
                texts["parameters"] = parameters
        if self.label is not None:
            texts[png.XMP_KEY] = self.label.xmp()
        return png.with_text(self.data, texts) if texts else self.data

    def encoded(self, suffix: str) -> bytes:
        """The PNG or AVIF file with recipe and label. Raises MediaError if Pillow was built without AVIF."""
        if suffix != AVIF:
            return self.file_bytes()
        return animation.write([self._pil], 1, AVIF, recipe_json(self.recipe), self.label)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode PNG, JPEG, WebP, GIF (its first frame), BMP, TIFF or AVIF, with the recipe if Studio wrote one, and
        the AI label.

        The picture is rotated upright and converted to sRGB with 8 bits per sample; `notices` report assumptions. A
        text chunk `studio` of another program is not a recipe. Raises MediaError if the format is unknown, the file is
        truncated, or the picture is larger than 50 megapixels (by its header, before decoding).
        """
        found = pictures.read(data)
        text = found.description
        recipe, unread = recipe_of(text if text.startswith("{") else None)
        if png.is_png(data):
            try:
                recipe, unread = recipe_of(png.read_text(data, "studio"))
            except MediaError as error:
                recipe, unread = None, (f"{UNREAD}: {error.message}",)
        made = cls._of(found).attach(recipe, None).labelled(label.of_xmp(found.xmp))
        return made.noticing((*found.notices, *unread))

    @classmethod
    def decode_isolated(cls, data: bytes) -> Self:
        """Decode as `decode` does, in a process with limited memory and time, and without any recipe in the file: for
        files of strangers. The AI label is read. It takes about 0.2 s longer. Raises MediaError.
        """
        found = pictures.read_isolated(data)
        return cls._of(found).labelled(label.of_xmp(found.xmp)).noticing(found.notices)

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The identity of the picture in these bytes, which does not depend on the file's text chunks."""
        return cls._of(pictures.read(file)).sha256

    @classmethod
    def _of(cls, found: pictures.Picture) -> Self:
        """The picture, without copying the pixels."""
        made = cls.__new__(cls)
        made._pil = found.pil
        return made

    def _content(self) -> Iterator[bytes]:
        width, height = self.size
        yield f"image {self.mode} {width}x{height}\n".encode()
        rows = max(1, (1 << 20) // width)
        for top in range(0, height, rows):  # copying all at once would double the memory of a large picture
            yield self._pil.crop((0, top, width, min(height, top + rows))).tobytes()


def recipe_in(data: bytes) -> Recipe | None:
    """Return the recipe in a PNG file, or None if it has no readable one."""
    return recipe_of(png.read_text(data, "studio"))[0] if png.is_png(data) else None
