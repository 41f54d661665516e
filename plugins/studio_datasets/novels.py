"""The six novels of Jane Austen (public domain), out of Debian's package of them for R.

R keeps a package's data in an `.rdb` file: one block after another, each its size and a zlib stream of one object in
R's XDR serialisation ("R Internals", section 1.8). Here each is a vector of strings, a line of the novel each; that and
nothing else is read.

Try it: ``python -c "from studio_datasets.novels import *; print(novels(Path('training/cache'))[0][:400])"``
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from studio.errors import StudioError
from studio_datasets import fetch

STRINGS, STRING = 16, 9  # SEXPTYPE of a character vector and of one string
DATA = Path("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")


def novels(cache: Path) -> list[str]:
    """The text of each novel, fetched into `cache` if need be. Raises StudioError if the package is of another form."""
    path = fetch.fetch(fetch.NOVELS, cache) / DATA
    try:
        return ["\n".join(strings(block)) + "\n" for block in blocks(path.read_bytes())]
    except (OSError, ValueError, zlib.error, struct.error) as error:
        hint = "remove the package's folder and fetch again"
        raise StudioError(f"`{path}` holds no vectors of strings: {error}", hint=hint) from None


def blocks(data: bytes) -> list[bytes]:
    """The objects of an `.rdb` file, serialised. Raises ValueError if one is not as long as it says."""
    found = []
    while data:
        (size,) = struct.unpack_from(">I", data)
        stream = zlib.decompressobj()
        found.append(stream.decompress(data[4:]))
        if len(found[-1]) != size or not stream.eof:
            raise ValueError(f"a block has {len(found[-1])} bytes and says {size}")
        data = stream.unused_data
    return found


def strings(block: bytes) -> list[str]:
    """The strings of a serialised character vector. Raises ValueError if it is something else."""
    at = 2 + 3 * 4  # `X`, a newline, and three versions
    if block[:2] != b"X\n" or struct.unpack_from(">I", block, 2) != (3,):
        raise ValueError("it is not serialised in R's version 3")
    at += 4 + struct.unpack_from(">I", block, at)[0]  # the name of an encoding
    kind, count = struct.unpack_from(">II", block, at)
    at += 8
    if kind & 0xFF != STRINGS:
        raise ValueError(f"it is an object of R's type {kind & 0xFF}")
    made: list[str] = []
    for _ in range(count):
        kind, size = struct.unpack_from(">Ii", block, at)
        if kind & 0xFF != STRING or not 0 <= size <= len(block) - at - 8:
            raise ValueError(f"string {len(made)} is none")
        made.append(block[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return made
