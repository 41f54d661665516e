"""Media: what generators take and make. Text, Image and Embedding live here, Video and Audio in `timed_media`.

Media are values: they never change, compare by content, and know nothing of generators or stores.

**Identity.** `sha256` names the *content*, never the file around it: for a picture the mode, size and pixels, so that
neither a zlib release nor the recipe inside the PNG changes it; for other media the canonical encoding `data`. The same
seed therefore gives the same id in two runs and in two processes, and a picture read back from a file
with or without its recipe keeps its id. What the host adds (`recipe`, `path`) is not part of the value.

Try it: ``python -c "import studio; print(studio.Image.open('a.png').sha256)"``
"""

from __future__ import annotations

import copy
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from studio import png
from studio.caching import cached_property
from studio.errors import MediaError
from studio.files import read_limited, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    from studio.recipe import MediaRef, Recipe

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Media:
    """Base of all media: immutable, equal when their content is equal.

    A subclass gives `media_type`, `suffix`, `kind`, `noun` (for messages), `data` and `decode`; `others` are suffixes
    of further formats that its `save` writes. `recipe` and `path` (where the store keeps it) are None until the host
    attaches them.
    """

    media_type: ClassVar[str]
    suffix: ClassVar[str]
    kind: ClassVar[str]
    noun: ClassVar[str]
    others: ClassVar[tuple[str, ...]] = ()
    max_file_bytes: ClassVar[int] = MAX_FILE_BYTES

    _recipe: Recipe | None = None
    _path: Path | None = None

    @property
    def data(self) -> bytes:
        """The canonical encoding, without recipe; equal content gives equal bytes under one set of libraries."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode bytes, which may be hostile. Raises MediaError."""
        raise NotImplementedError

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The `sha256` that media read from these bytes would have. Raises MediaError where that needs decoding."""
        return hashlib.sha256(file).hexdigest()

    def samples(self) -> NDArray[np.generic] | None:
        """The content as numbers, for measuring how far two media differ; None where that means nothing (text)."""
        return None

    @property
    def recipe(self) -> Recipe | None:
        """How it was made, where the host or the file told."""
        return self._recipe

    @property
    def path(self) -> Path | None:
        """Where it lies, where the host stored it or it was opened from a file."""
        return self._path

    @cached_property
    def sha256(self) -> str:
        """The identity: sha256 of the content (see the module's docstring), in hex."""
        return hashlib.sha256(self._content()).hexdigest()

    @property
    def ref(self) -> MediaRef:
        """The media by name: hash and type."""
        from studio.recipe import MediaRef

        return MediaRef(sha256=self.sha256, media_type=self.media_type)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read a file. Raises MediaError if it is missing, too large, truncated or of another kind."""
        data = read_limited(path, cls.max_file_bytes)
        try:
            media = cls.decode(data)
        except MediaError as error:
            raise MediaError(f"cannot read `{path}` as {cls.noun}: {error.message}", hint=error.hint) from error
        return media.attach(media.recipe, Path(path))

    def save(self, path: Path | str, *, overwrite: bool = True) -> Path:
        """Write the file, whole or not at all, with its recipe where the format can carry one. Raises StoreError.

        Without `overwrite` a file that has the name stays, and FileTaken is raised.
        """
        return write_atomically(path, self.file_bytes(), overwrite=overwrite)

    def file_bytes(self) -> bytes:
        """The bytes that `save` writes."""
        return self.data

    def attach(self, recipe: Recipe | None, path: Path | None) -> Self:
        """Return the same media with another recipe and path (the host's part)."""
        other = copy.copy(self)
        other._recipe, other._path = recipe, path
        return other

    def _content(self) -> bytes:
        return self.data

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Media) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sha256[:12]}…)"

    @classmethod
    def accept(cls, value: object) -> Self:
        """Take media for an input: an instance of this class, or the path of a file. Raises ValueError, MediaError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls.open(value)
        found = type(value).__name__
        raise ValueError(f"pass a `studio.{cls.__name__}` or the path of a file, not {found}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        name = core_schema.plain_serializer_function_ser_schema(lambda media: media.ref.model_dump(), when_used="json")
        return core_schema.no_info_plain_validator_function(cls.accept, serialization=name)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "path", "contentMediaType": cls.media_type, "x-studio-media": cls.kind}


class Text(Media):
    """Unicode text. `str(text)` and `.text` give it back; encoded as UTF-8."""

    media_type, suffix, kind, noun = "text/plain", ".txt", "text", "text"

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    @property
    def data(self) -> bytes:
        """The text as UTF-8."""
        try:
            return self.text.encode()
        except UnicodeEncodeError:
            raise MediaError("the text holds a lone surrogate, which UTF-8 cannot encode") from None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode UTF-8. Raises MediaError."""
        try:
            return cls(data.decode())
        except UnicodeDecodeError as error:
            raise MediaError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None

    @classmethod
    def accept(cls, value: object) -> Self:
        """Take a string as the text itself; only a `Path` is opened."""
        return cls(value) if isinstance(value, str) else super().accept(value)


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


class Embedding(Media):
    """A vector of finite float32, shape (n,), n >= 1. Encoded as .npy, little-endian."""

    media_type, suffix, kind, noun = "application/x-npy", ".npy", "embedding", "an embedding"

    def __init__(self, vector: NDArray[np.floating[Any]]) -> None:
        import numpy as np

        array = np.array(vector, dtype="<f4")
        if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
            raise MediaError(f"an embedding is a vector of finite numbers; this has the shape {array.shape}, or NaN")
        array.setflags(write=False)
        self.vector: NDArray[np.float32] = array

    def samples(self) -> NDArray[np.generic]:
        """The vector, float32 (n,)."""
        return self.vector

    @property
    def data(self) -> bytes:
        """The vector as .npy, format 1.0."""
        import numpy as np

        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, self.vector, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode .npy; never unpickles. Raises MediaError."""
        import numpy as np

        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError) as error:
            raise MediaError(f"not a .npy array: {error}") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise MediaError("not a .npy array of real numbers")
        return cls(array)


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
