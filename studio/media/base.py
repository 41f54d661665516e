"""The base class of all media, and text. Pictures, embeddings, videos and audio have a module each.

Media are immutable values that compare by content.

**Identity.** `sha256` is the hash of the *content*, not of the file: for a picture of its mode, size and pixels, so
that neither the zlib version nor the recipe and the label in the PNG change it; for other media of the canonical
encoding `data`. The same seed therefore gives the same hash in every run and process, and a picture read from a file
has the same hash with and without its recipe and label. The host's additions (`recipe`, `path`, `label`) are not part
of the value.

Try it: ``python -c "import studio; print(studio.Image.open('a.png').sha256)"``
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from studio.caching import cached_property
from studio.errors import MediaError
from studio.files import read_limited, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from studio.media.label import Label
    from studio.media.signing import Signer
    from studio.recipe import MediaRef, Recipe

MAX_FILE_BYTES = 64 << 20
MAX_DECODED_BYTES = 512 << 20
"""The limit of the decoded size of a file's pixels, frames or samples. It is checked before decoding."""


UNREAD = "its recipe cannot be read"  # the beginning of a notice


def damaged(noun: str, formats: str) -> MediaError:
    """The error for any damage in a file."""
    return MediaError(
        f"{noun} is truncated, damaged, or not in a supported format ({formats})",
        hint="save it in one of these formats",
    )


def check_decoded(size: int, noun: str, what: str) -> None:
    """Raise MediaError if the decoded size of a file exceeds `MAX_DECODED_BYTES`; `what` describes its content."""
    if size > MAX_DECODED_BYTES:
        raise MediaError(
            f"{noun} has {what}, {size >> 20:,} MiB when decoded; the limit is {MAX_DECODED_BYTES >> 20} MiB",
            hint="make it smaller or shorter",
        )


def recipe_json(recipe: Recipe | None) -> str:
    """The recipe as ASCII, for a file's comment or description; empty for None."""
    return json.dumps(json.loads(recipe.portable().to_json())) if recipe else ""


def recipe_of(text: str | None) -> tuple[Recipe | None, tuple[str, ...]]:
    """The recipe in a text of a file, or None with a notice. A text by another program is not a recipe."""
    from studio.recipe import Recipe

    if text is None:
        return None, ()
    if not (text.lstrip().startswith("{") and '"schema_version"' in text):
        return None, ("its text `studio` was written by another program, and is not a recipe",)
    try:
        return Recipe.parse(text), ()
    except MediaError as error:
        return None, (f"{UNREAD}: {error.message.removeprefix('the recipe is invalid: ')}",)


class Media:
    """Base class of all media: immutable, equal if their content is equal.

    A subclass defines `media_type`, `suffix`, `kind`, `noun` (for messages), `data` and `decode`; `others` are the
    suffixes of other formats that `save` can write, and `also` describes, for messages, what else `accept` supports.
    `recipe` and `path` (in the store) are None until the host attaches them. Media whose class
    `has_label` is set carry the AI label that the host attaches, or that their file has.
    """

    media_type: ClassVar[str]
    suffix: ClassVar[str]
    kind: ClassVar[str]
    noun: ClassVar[str]
    others: ClassVar[tuple[str, ...]] = ()
    also: ClassVar[str] = ""
    max_file_bytes: ClassVar[int] = MAX_FILE_BYTES
    has_label: ClassVar[bool] = False

    _recipe: Recipe | None = None
    _path: Path | None = None
    _label: Label | None = None
    _notices: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        """The canonical encoding, without recipe; equal content gives equal bytes under one set of libraries."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode untrusted bytes. Raises MediaError."""
        raise NotImplementedError

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The `sha256` of the media in these bytes. Raises MediaError if decoding is needed and fails."""
        return hashlib.sha256(file).hexdigest()

    def matches(self, file: bytes) -> bool:
        """Whether media read from these bytes would have this content. Raises MediaError as `identify` does."""
        return self.identify(file) == self.sha256

    def samples(self) -> NDArray[np.generic] | None:
        """The content as numbers, for measuring how far two media differ; None for text."""
        return None

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, if the host attached it or the file contains it."""
        return self._recipe

    @property
    def path(self) -> Path | None:
        """The path of the file in the store, or of the file that was opened."""
        return self._path

    @property
    def label(self) -> Label | None:
        """The AI label that `save` writes; None for media that nobody labelled."""
        return self._label.of(self.sha256) if self._label else None

    @property
    def notices(self) -> tuple[str, ...]:
        """Messages for the user about how the file was read, such as repeated frames; not part of the value."""
        return self._notices

    @cached_property
    def sha256(self) -> str:
        """The identity: sha256 of the content (see the module's docstring), in hex."""
        made = hashlib.sha256()
        for piece in self._content():
            made.update(piece)
        return made.hexdigest()

    @property
    def ref(self) -> MediaRef:
        """A reference to the media: hash and type."""
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

    def save(self, path: Path | str, *, overwrite: bool = True, signer: Signer | None = None) -> Path:
        """Write the file atomically, in the format of its suffix (one of `suffix` and `others`; any other means
        `suffix`), with recipe and AI label if the format supports them; signed by the `signer`, if one is given. Raises
        StoreError, MediaError if the format cannot hold the media, and as `Signer.sign`.

        Without `overwrite` an existing file does not change, and FileTaken is raised.
        """
        ends = Path(path).suffix.lower()
        suffix = ends if ends in self.others else self.suffix
        data = self.encoded(suffix)
        return write_atomically(path, signer.sign(data, suffix, self.label) if signer else data, overwrite=overwrite)

    def encoded(self, suffix: str) -> bytes:
        """The file in the format of `suffix`, which is one of `others`, or the media's own."""
        return self.file_bytes()

    def file_bytes(self) -> bytes:
        """The file in the media's own format."""
        return self.data

    def data_url(self) -> str:
        """The media as a ``data:`` URL, for HTML."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    def attach(self, recipe: Recipe | None, path: Path | None) -> Self:
        """Return the same media with another recipe and path (the host's part)."""
        other = copy.copy(self)
        other._recipe, other._path = recipe, path
        return other

    def labelled(self, label: Label | None) -> Self:
        """Return the same media with another AI label, or without one; unchanged if their files have none."""
        if not self.has_label or label == self._label:
            return self
        other = copy.copy(self)
        other._label = label
        return other

    def noticing(self, notices: Iterable[str]) -> Self:
        """Return the same media with other `notices`."""
        other = copy.copy(self)
        other._notices = tuple(notices)
        return other

    def _content(self) -> Iterable[bytes]:
        """The bytes from which the identity is computed, in pieces."""
        return (self.data,)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Media) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sha256[:12]}…)"

    @classmethod
    def accept(cls, value: object) -> Self:
        """Convert an input's value: an instance of this class, or the path of a file. Raises ValueError, MediaError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path) and not isinstance(value, Media):
            return cls.open(value)
        raise ValueError(f"pass a `studio.{cls.__name__}`{cls.also} or the path of a file, not {type(value).__name__}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        name = core_schema.plain_serializer_function_ser_schema(lambda media: media.ref.model_dump(), when_used="json")
        return core_schema.no_info_plain_validator_function(cls.accept, serialization=name)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "path", "contentMediaType": cls.media_type, "x-studio-media": cls.kind}


class Text(str, Media):
    """Unicode text, encoded as UTF-8. It is a `str`, and equal to a `str` of the same characters. Slicing, joining and
    other `str` methods return a plain `str`, without recipe and path.
    """

    media_type, suffix, kind, noun = "text/plain", ".txt", "text", "text"

    def __new__(cls, text: str) -> Self:
        """Create it from a `str`. Raises TypeError for anything else."""
        if not isinstance(text, str):
            raise TypeError(f"`studio.Text` needs a `str`, not {type(text).__name__}")
        return super().__new__(cls, text)

    @property
    def text(self) -> str:
        """The characters as a plain `str`."""
        return str(self)

    @property
    def data(self) -> bytes:
        """The text as UTF-8."""
        try:
            return self.encode()
        except UnicodeEncodeError:
            raise MediaError("the text contains a lone surrogate, which UTF-8 cannot encode") from None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode UTF-8. Raises MediaError."""
        try:
            return cls(data.decode())
        except UnicodeDecodeError as error:
            raise MediaError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None

    @classmethod
    def accept(cls, value: object) -> Self:
        """Convert an input's value: a `str` is the text itself; only a `Path` is opened."""
        return cls(value) if isinstance(value, str) and not isinstance(value, Media) else super().accept(value)
