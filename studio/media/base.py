"""What all media have in common, and text. Pictures, embeddings, videos and sound have a module each.

Media are values: they never change, compare by content, and know nothing of generators or stores.

**Identity.** `sha256` names the *content*, never the file around it: for a picture the mode, size and pixels, so that
neither a zlib release nor the recipe inside the PNG changes it; for other media the canonical encoding `data`. The same
seed therefore gives the same id in two runs and in two processes, and a picture read back from a file
with or without its recipe keeps its id. What the host adds (`recipe`, `path`) is not part of the value.

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

    from studio.recipe import MediaRef, Recipe

MAX_FILE_BYTES = 64 << 20
MAX_DECODED_BYTES = 512 << 20
"""What a file may hold once it is decoded: of pixels, frames or samples. It is counted before anything is decoded."""


UNREAD = "its recipe cannot be read"  # how a notice begins that says so


def damaged(noun: str, formats: str) -> MediaError:
    """The error for any damage that a decoder finds in a file."""
    return MediaError(
        f"{noun} is truncated, damaged, or not in a supported format ({formats})",
        hint="save it in one of these formats",
    )


def check_decoded(size: int, noun: str, what: str) -> None:
    """Raise MediaError if `what` a file claims to hold takes more than `MAX_DECODED_BYTES` once decoded."""
    if size > MAX_DECODED_BYTES:
        raise MediaError(
            f"{noun} has {what}, {size >> 20:,} MiB when decoded; the limit is {MAX_DECODED_BYTES >> 20} MiB",
            hint="make it smaller or shorter",
        )


def recipe_json(recipe: Recipe | None) -> str:
    """The recipe as ASCII, for a file's comment or description; nothing for None."""
    return json.dumps(json.loads(recipe.portable().to_json())) if recipe else ""


def recipe_of(text: str | None) -> tuple[Recipe | None, tuple[str, ...]]:
    """The recipe in a text of a file, or None and why not. What another program wrote there is not a recipe."""
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
    """Base of all media: immutable, equal when their content is equal.

    A subclass gives `media_type`, `suffix`, `kind`, `noun` (for messages), `data` and `decode`; `others` are suffixes
    of further formats that its `save` writes, and `also` says in words what else `accept` takes. `recipe` and `path`
    (where the store keeps it) are None until the host attaches them.
    """

    media_type: ClassVar[str]
    suffix: ClassVar[str]
    kind: ClassVar[str]
    noun: ClassVar[str]
    others: ClassVar[tuple[str, ...]] = ()
    also: ClassVar[str] = ""
    max_file_bytes: ClassVar[int] = MAX_FILE_BYTES

    _recipe: Recipe | None = None
    _path: Path | None = None
    _notices: tuple[str, ...] = ()

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
        """The recipe, if the host attached it or the file contains it."""
        return self._recipe

    @property
    def path(self) -> Path | None:
        """Where it lies, where the host stored it or it was opened from a file."""
        return self._path

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user must know of how the file was read, such as frames that were repeated; no part of the value."""
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

    def data_url(self) -> str:
        """The media as a ``data:`` URL, for HTML."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    def attach(self, recipe: Recipe | None, path: Path | None) -> Self:
        """Return the same media with another recipe and path (the host's part)."""
        other = copy.copy(self)
        other._recipe, other._path = recipe, path
        return other

    def noticing(self, notices: Iterable[str]) -> Self:
        """Return the same media with what the user must know of how its file was read."""
        other = copy.copy(self)
        other._notices = tuple(notices)
        return other

    def _content(self) -> Iterable[bytes]:
        """What the identity is computed from, in pieces."""
        return (self.data,)

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
    """Unicode text, encoded as UTF-8. It is a `str`, and equal to a `str` of the same characters; what is made of it by
    slicing, joining and the like is a plain `str`, without recipe and path.
    """

    media_type, suffix, kind, noun = "text/plain", ".txt", "text", "text"

    def __new__(cls, text: str) -> Self:
        """Take the characters of a `str`. Raises TypeError for anything else."""
        if not isinstance(text, str):
            raise TypeError(f"a `studio.Text` is made of a `str`, not of {type(text).__name__}")
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
        """Take a string as the text itself; only a `Path` is opened."""
        return cls(value) if isinstance(value, str) and not isinstance(value, Media) else super().accept(value)
