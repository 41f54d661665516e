"""PNG text chunks: write a few, read one from a file that may be hostile (PNG specification, third edition, 11.3.3).

Only the chunk structure is handled here, no pixels: `with_text` puts iTXt chunks behind the header, `read_text` finds
one by its key. Every length is checked against the bytes at hand and against `MAX_TEXT_BYTES`, compressed text
is inflated no further than that. This module knows nothing of recipes or pixels.

Try it: ``python -c "from studio.media.png import *; print(read_text(open('a.png', 'rb').read(), 'parameters'))"``
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

from studio.errors import MediaError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20
_HEADER_END = len(SIGNATURE) + 4 + 4 + 13 + 4  # signature, IHDR's length, type, body, CRC


def is_png(data: bytes) -> bool:
    """Say whether the bytes start as a PNG does."""
    return data.startswith(SIGNATURE)


def with_text(png: bytes, texts: Mapping[str, str]) -> bytes:
    """Return the PNG with each text as an uncompressed iTXt chunk behind IHDR; deterministic for equal arguments."""
    chunks = [_chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for key, text in texts.items()]
    return png[:_HEADER_END] + b"".join(chunks) + png[_HEADER_END:]


def read_text(png: bytes, key: str) -> str | None:
    """Return the text of the first tEXt, zTXt or iTXt chunk with this key, or None if there is none.

    Raises MediaError for a file that is no PNG, is truncated anywhere, whose chunk is damaged (CRC) or
    holds more than 1 MiB of text.
    """
    wanted = key.encode("latin-1") + b"\0"
    found = [(kind, body) for kind, body in _chunks(png) if body.startswith(wanted)]
    return _text(found[0][0], found[0][1][len(wanted) :], key) if found else None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Walk the chunks up to IEND, checking lengths and checksums of text chunks."""
    if not is_png(png):
        raise MediaError("this is no PNG: its first bytes are not a PNG's")
    at = len(SIGNATURE)
    while at < len(png):
        if at + 12 > len(png):
            raise MediaError("the PNG is truncated: it ends inside a chunk's header")
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + length
        if end > len(png):
            raise MediaError(f"the PNG is truncated: a chunk claims {length:,} bytes, {len(png) - at - 12:,} are left")
        body = png[at + 8 : end - 4] if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        if body and zlib.crc32(kind + body) != struct.unpack_from(">I", png, end - 4)[0]:
            raise MediaError("the PNG is damaged: the checksum of a text chunk is wrong")
        yield kind, body
        if kind == b"IEND":
            return
        at = end
    raise MediaError("the PNG is truncated: its end mark (IEND) is missing")


def _text(kind: bytes, rest: bytes, key: str) -> str:
    """Decode what follows the key in a text chunk."""
    encoding, packed = "latin-1", kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # flags; language tag; translated key
    if packed:
        rest = _inflate(rest, key)
    if len(rest) > MAX_TEXT_BYTES:
        raise MediaError(f"the PNG's text `{key}` is longer than {MAX_TEXT_BYTES:,} bytes, the most that is read")
    try:
        return rest.decode(encoding)
    except UnicodeDecodeError:
        raise MediaError(f"the PNG's text `{key}` is not valid {encoding}") from None


def _inflate(packed: bytes, key: str) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES + 1)
    except zlib.error as error:
        raise MediaError(f"the PNG's text `{key}` is damaged: {error}") from None


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
