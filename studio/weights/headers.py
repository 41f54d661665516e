"""Safetensors files without torch: the header, the JSON text that describes each tensor, and the bytes of tensors.

Format: https://huggingface.co/docs/safetensors.

Try it: ``python -c "from studio.weights.headers import *; read_header(open('a.safetensors', 'rb'), 1 << 20)"``
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from studio.errors import WeightsError
from studio.files import open_regular

MOST_HEADER = 100_000_000  # bytes; what safetensors itself allows


def read_header(file: IO[bytes], size: int) -> bytes | None:
    """The header of a file of `size` bytes, read from its start, or None if it is missing or truncated."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(MOST_HEADER, size - 8):
        return None
    header = file.read(length)
    return header if len(header) == length and header.startswith(b"{") else None


class TensorBytes:
    """The bytes of the tensors of one file, by their names in it.

    They are read, not mapped: pages of a mapped file that were touched count as memory of the process. Raises
    WeightsError for a file without a valid header.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_regular(path)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()  # for the position in the file
        header = read_header(self._file, os.fstat(self._file.fileno()).st_size)
        try:
            self._header: dict[str, Any] = json.loads(header or b"")
        except ValueError:
            raise _changed(path) from None
        self._start = 8 + len(header or b"")

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype, such as ``BF16``."""
        return str(self._header[name]["dtype"])

    def read_into(self, name: str, memory: memoryview) -> None:
        """Read a tensor into memory of its size. Raises WeightsError if the file has changed."""
        begin, end = self._header[name]["data_offsets"]
        if end - begin != len(memory):
            raise _changed(self._path)
        with self._lock:
            self._file.seek(self._start + begin)
            while memory:
                count = self._file.readinto(memory)
                if not count:
                    raise _changed(self._path)
                memory = memory[count:]


def _changed(path: Path) -> WeightsError:
    message = f"the weights `{path}` changed while they were read"
    return WeightsError(path, message, hint="try again when the files are complete")
