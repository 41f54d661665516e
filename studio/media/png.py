"""PNG chunks (metadata, not pixels): write texts, and read untrusted files (PNG specification, 3rd edition, 11.3.3).

`with_text` adds iTXt chunks after the header, `read_text` finds one by its key, `profile` decompresses the colour
profile, and `picture` is the file without either. Every length is checked against the available bytes, and
decompression stops at `MAX_TEXT_BYTES` or `MAX_PROFILE_BYTES`.

Try it: ``python -c "from studio.media.png import *; print(read_text(open('a.png', 'rb').read(), 'parameters'))"``
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

from studio.errors import MediaError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEY = "XML:com.adobe.xmp"  # of the text chunk with an XMP packet (XMP specification, part 3)
MAX_TEXT_BYTES = 1 << 20
MAX_PROFILE_BYTES = 4 << 20
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
_MOVING = (b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_HEADER_END = len(SIGNATURE) + 4 + 4 + 13 + 4  # signature, IHDR's length, type, body, CRC


def is_png(data: bytes) -> bool:
    """Whether the bytes start like a PNG file."""
    return data.startswith(SIGNATURE)


def with_text(png: bytes, texts: Mapping[str, str]) -> bytes:
    """Return the PNG with each text as an uncompressed iTXt chunk after IHDR; equal arguments give equal bytes."""
    chunks = [chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for key, text in texts.items()]
    return png[:_HEADER_END] + b"".join(chunks) + png[_HEADER_END:]


def read_text(png: bytes, key: str) -> str | None:
    """Return the text of the first tEXt, zTXt or iTXt chunk with this key, or None if there is none.

    Raises MediaError if the file is not a PNG or is truncated, and if the chunk is damaged (CRC) or has more than
    1 MiB of text.
    """
    wanted = key.encode("latin-1") + b"\0"
    for kind, start, end in list(chunks(png)):  # all chunks, to detect truncation
        if kind in _TEXTS and png.startswith(wanted, start, end):
            body = png[start:end]
            if zlib.crc32(kind + body) != struct.unpack_from(">I", png, end)[0]:
                raise MediaError(f"the PNG is damaged: the checksum of the text `{key}` is wrong")
            return _text(kind, body[len(wanted) :], key)
    return None


def xmp(png: bytes) -> bytes:
    """The XMP packet; empty if there is none. Raises MediaError like `read_text`."""
    return (read_text(png, XMP_KEY) or "").encode()


def picture(png: bytes, *, moving: bool = False) -> bytes:
    """The file with only its pixels, palette, colour key and orientation, and with its animation if `moving`.

    Decoders reject files with long compressed texts or colour profiles. Raises MediaError for a truncated file, and
    for one without pixels. Bytes after the end mark are dropped.
    """
    kept = _PIXELS + (_MOVING if moving else ())
    found = [(start - 8, end + 4) for kind, start, end in chunks(png) if kind in kept]
    view = memoryview(png)
    return b"".join([SIGNATURE, *(view[start:end] for start, end in found)])


def profile(png: bytes) -> bytes | None:
    """The decompressed colour profile (chunk iCCP), or None. Raises MediaError if it is damaged or over 4 MiB."""
    for kind, start, end in chunks(png):
        if kind == b"IDAT":
            return None
        if kind == b"iCCP":
            packed = png[start:end].partition(b"\0")[2][1:]
            return _inflate(packed, "iCCP", MAX_PROFILE_BYTES)
    return None


def size(png: bytes) -> tuple[int, int]:
    """Width and height in the header. Raises MediaError."""
    if len(png) < _HEADER_END or png[12:16] != b"IHDR":
        raise MediaError("the PNG is truncated: it ends inside its header")
    width, height = struct.unpack_from(">II", png, 16)
    return width, height


def depth(png: bytes) -> int:
    """The bits per sample, from the header."""
    return png[24]


def chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the chunks up to IEND: kind, start and end of the body. Raises MediaError for a truncated file."""
    if not is_png(png):
        raise MediaError("not a PNG file")
    at = len(SIGNATURE)
    while at < len(png):
        if at + 12 > len(png):
            raise MediaError("the PNG is truncated: it ends inside a chunk's header")
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + length
        if end > len(png):
            raise MediaError(f"the PNG is truncated: a chunk claims {length:,} bytes, {len(png) - at - 12:,} are left")
        yield kind, at + 8, end - 4
        if kind == b"IEND":
            return
        at = end
    raise MediaError("the PNG is truncated: its end mark (IEND) is missing")


def _text(kind: bytes, rest: bytes, key: str) -> str:
    """Decode the bytes after the key in a text chunk."""
    encoding, packed = "latin-1", kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # flags; language tag; translated key
    if packed:
        return _decoded(_inflate(rest, key, MAX_TEXT_BYTES), encoding, key)
    if len(rest) > MAX_TEXT_BYTES:
        raise _too_long(key, MAX_TEXT_BYTES)
    return _decoded(rest, encoding, key)


def _decoded(rest: bytes, encoding: str, key: str) -> str:
    try:
        return rest.decode(encoding)
    except UnicodeDecodeError:
        raise MediaError(f"the PNG's text `{key}` is not valid {encoding}") from None


def _inflate(packed: bytes, key: str, most: int) -> bytes:
    try:
        found = zlib.decompressobj().decompress(packed, most + 1)
    except zlib.error as error:
        raise MediaError(f"the PNG's `{key}` is damaged: {error}") from None
    if len(found) > most:
        raise _too_long(key, most)
    return found


def _too_long(key: str, most: int) -> MediaError:
    return MediaError(f"the PNG's `{key}` is longer than {most:,} bytes, the limit")


def chunk(kind: bytes, body: bytes) -> bytes:
    """The bytes of a chunk, with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
