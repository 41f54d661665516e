"""The header of a safetensors file: the JSON text that describes each tensor.

Format: https://huggingface.co/docs/safetensors. Nothing here reads a tensor or needs torch.

Try it: ``python -c "from studio.weights.headers import *; read_header(open('a.safetensors', 'rb'), 1 << 20)"``
"""

from __future__ import annotations

from typing import IO

MOST_HEADER = 100_000_000  # bytes; what safetensors itself allows


def read_header(file: IO[bytes], size: int) -> bytes | None:
    """The header of a file of `size` bytes, read from its start, or None if it is missing or truncated."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(MOST_HEADER, size - 8):
        return None
    header = file.read(length)
    return header if len(header) == length and header.startswith(b"{") else None
