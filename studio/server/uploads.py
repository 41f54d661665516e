"""Uploaded files: multipart forms within limits, and their media, decoded in a process with limited memory and time.

Nothing in a request is a path or is fetched: a picture is a part of a form, a ``data:`` URL, or base64.

Try it: ``curl http://127.0.0.1:7860/v1/images/edits -F image=@apple.png -F prompt="a pear"``
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from studio.errors import InputError
from studio.media import Audio, Image, Video
from studio.server.errors import refused
from studio.server.limits import RequestLimits

T = TypeVar("T")
MOST_DECODING = 4  # processes at once; each may need over 1 GiB
_decoders = ThreadPoolExecutor(MOST_DECODING, "studio-decode")
_TAIL = 512  # bytes at the end of a form in which its last boundary must be


@dataclass
class UploadForm:
    """A multipart form: its texts and its files, by name, each in order."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    @staticmethod
    def schema(*names: str) -> dict[str, Any]:
        """The form's part of OpenAPI's description of a route; `image`, `mask` and `file` are files."""
        files = ("image", "mask", "file", "input_reference")
        kinds = {name: {"type": "string", **({"format": "binary"} if name in files else {})} for name in names}
        schema = {"type": "object", "properties": kinds}
        return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}, "required": True}}

    def all_files(self, name: str) -> list[bytes]:
        """The files of a name, also in the form of a list: ``image``, ``image[]`` or ``image[0]``."""
        return [each for key, found in self.files.items() if key.partition("[")[0] == name for each in found]

    def values(self) -> dict[str, str | list[str]]:
        """The texts: one text for a name, or a list if it was given several times or ends in ``[]``."""
        return {
            name.removesuffix("[]"): found if name.endswith("[]") or len(found) > 1 else found[0]
            for name, found in self.texts.items()
        }


async def read_form(request: Request, limits: RequestLimits) -> UploadForm:
    """Read a multipart form. Raises Refusal if it is truncated, damaged, or has too many or too large parts."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise refused(415, "unsupported_media_type", "send the body as `multipart/form-data`")
    tail = bytearray()

    async def stream() -> AsyncGenerator[bytes]:
        async for piece in request.stream():
            tail.extend(piece)
            del tail[:-_TAIL]
            yield piece
        if not bytes(tail).rstrip().endswith(b"--"):  # raised here, the parser closes the files that it has begun
            raise MultiPartException("it is truncated, as its last boundary is missing")

    parser = MultiPartParser(
        request.headers,
        stream(),
        max_files=limits.files,
        max_fields=limits.parts,
        max_part_size=limits.part_bytes,
    )
    try:
        parsed = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it has no valid boundary"
        raise refused(400, "invalid_multipart", f"the multipart body cannot be read: {reason[:200]}") from None
    try:
        form = UploadForm()
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            else:
                form.texts.setdefault(name, []).append(value)
        return form
    finally:
        await parsed.close()


async def picture(data: bytes) -> Image:
    """Decode an uploaded picture. Raises MediaError."""
    return await _decoded(Image.decode_isolated, data)


async def sound(data: bytes) -> Audio:
    """Decode an uploaded sound, without any recipe in it. Raises MediaError."""
    return (await _decoded(Audio.decode, data)).attach(None, None)


async def clip(data: bytes) -> Video:
    """Decode an uploaded clip, without any recipe in it. Raises MediaError."""
    return (await _decoded(Video.decode, data)).attach(None, None)


async def _decoded(decode: Callable[[bytes], T], data: bytes) -> T:
    return await asyncio.get_running_loop().run_in_executor(_decoders, decode, data)


def decoded_base64(name: str, text: str) -> bytes:
    """The bytes of base64 or a ``data:`` URL with base64. Raises InputError, also for any other URL."""
    head, comma, rest = text.partition(",")
    if head[:5].lower() == "data:" and comma:
        if not head.lower().endswith(";base64"):
            raise InputError(name, f"`{name}` is a `data:` URL without `;base64`")
        text = rest
    elif "://" in text[:20] or head[:5].lower() == "file:":
        raise InputError(name, f"`{name}` is a URL, which the server does not fetch", hint="send the file itself")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(name, f"`{name}` is not base64") from None
