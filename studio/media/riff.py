"""RIFF chunks, of which WAV and WebP files consist.

Try it: ``python -c "from studio.media.riff import chunks; print(list(chunks(open('a.wav', 'rb').read())))"``
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator


def file(kind: bytes, parts: Iterable[tuple[bytes, bytes]], more: bytes = b"") -> bytes:
    """A RIFF file of a kind such as ``WAVE``, of chunks by name, and `more` chunks in bytes."""
    body = b"".join(name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for name, part in parts) + more
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + kind + body


def chunks(data: bytes, start: int = 12) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the chunks: name, start and end of the body; nothing for a file that is not RIFF. The last one may
    be truncated.
    """
    if data[:4] != b"RIFF":
        return
    at, last = start, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= last:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, min(at + 8 + length, last)
        at += 8 + length + length % 2
