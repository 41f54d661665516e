"""Jane Austen's six novels from Debian's r-cran-janeaustenr, in R's serialization format.

An `.rdb` file consists of blocks: a length in four bytes, and zlib data of that length. A block here is one vector of
strings, one line of a novel each, serialised by R in its XDR form (R Internals, "Serialization Formats").

Try it: ``pytest tests/recipes/data/test_novels.py``
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from recipes.data import fetch
from studio.errors import StudioError

MOST = 16 << 20  # bytes of one novel; the longest has a million
STRINGS, STRING = 16, 9  # types of R's serialised values, in their lowest byte
HEADER = b"X\n"  # XDR; the three numbers after it are versions, and version 3 names an encoding


def novels(cache: Path) -> list[str]:
    """The six novels, each with one line per paragraph; the package is downloaded into `cache` if necessary.

    Raises StudioError if it cannot be downloaded, or is damaged.
    """
    file = next((fetch.fetch(fetch.NOVELS, cache) / "usr/lib/R/site-library/janeaustenr/data").glob("*.rdb"), None)
    if file is None:
        raise StudioError("the package of the novels has no `.rdb` file", hint="remove it from the cache")
    try:
        return [paragraphs(strings(block)) for block in blocks(file.read_bytes())]
    except (struct.error, zlib.error, ValueError) as error:
        raise StudioError(f"`{file}` is damaged: {error}", hint="remove its package from the cache") from None


def blocks(data: bytes) -> Iterator[bytes]:
    """The decompressed values of an `.rdb` file. Raises ValueError if one exceeds 16 MiB or its declared length."""
    while data:
        (length,) = struct.unpack_from(">I", data)
        if length > MOST:
            raise ValueError(f"a block of {length:,} bytes")
        unpacker = zlib.decompressobj()
        made = unpacker.decompress(data[4:], length)
        if len(made) != length or not unpacker.eof:
            raise ValueError(f"a block has {len(made):,} bytes and says {length:,}")
        yield made
        data = unpacker.unused_data


def strings(value: bytes) -> list[str]:
    """The strings of a serialised vector. Raises ValueError or struct.error for anything else."""
    if not value.startswith(HEADER):
        raise ValueError("no XDR of R's")
    version, _, _, name = struct.unpack_from(">4i", value, 2)
    at = 2 + 12 + (4 + name if version == 3 else 0)
    kind, count = struct.unpack_from(">2I", value, at)
    if kind & 0xFF != STRINGS:
        raise ValueError(f"a value of the type {kind & 0xFF}, where strings have {STRINGS}")
    at += 8
    made = []
    for _ in range(count):
        kind, length = struct.unpack_from(">2I", value, at)
        at += 8 + length
        if kind & 0xFF != STRING or at > len(value):
            raise ValueError("a string that is none, or longer than the block")
        made.append(value[at - length : at].decode())
    return made


def paragraphs(lines: list[str]) -> str:
    """Join lines to paragraphs, which empty lines separate."""
    return "\n".join(" ".join(each.split()) for each in "\n".join(lines).split("\n\n") if each.strip()) + "\n"
