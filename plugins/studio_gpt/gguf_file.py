"""GGUF files: the header, with every count and size checked against the file, and dequantization of tensors.

The header is parsed here because the reader of the package `gguf` trusts it (and takes seconds for a large vocabulary);
the package's tables and kernels dequantize blocks. Nothing is allocated for sizes that the file does not have.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian)

Try it: ``python -c "from studio_gpt.gguf_file import *; print(Gguf(Path('model.gguf')).metadata)"``
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.errors import WeightsError
from studio.files import open_regular

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMS = 4


@dataclass(frozen=True)
class Info:
    """A tensor: its shape in NumPy's order, the name of its type, and its byte offset and size in the file."""

    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int


class Gguf:
    """An open file: `metadata` by key, `tensors` by name. Raises WeightsError for a damaged or unsupported file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise self._error(f"cannot be read: {error}") from error
        try:
            self._at = 0
            self.metadata, self.tensors = self._header()
        except struct.error:
            raise self._error("is truncated within its header") from None

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor, dequantized to a float32 copy. Raises WeightsError for an unsupported type."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, info.size, info.offset)
        kind = GGMLQuantizationType[info.kind]
        if info.kind in ("F32", "F16"):
            raw = raw.view(np.float32 if info.kind == "F32" else np.float16)
        elif info.shape:
            raw = raw.reshape(*info.shape[:-1], -1)
        try:
            return np.array(dequantize(raw, kind), np.float32).reshape(info.shape)
        except NotImplementedError:
            message = f"has the tensor `{name}` in {info.kind}, which is not supported"
            raise self._error(message, "use the model in F16, Q8_0, Q4_0, Q4_1 or a K-quant") from None

    def _error(
        self, what: str, hint: str = "download the file again: it is damaged, or not a GGUF file"
    ) -> WeightsError:
        return WeightsError(self.path, f"`{self.path}` {what}", hint=hint)

    def _header(self) -> tuple[dict[str, Any], dict[str, Info]]:
        if self._data[:4] not in (b"GGUF", b"FUGG"):
            raise self._error("does not begin with a GGUF header")
        self._at = 4
        version = self._scalar("<I")
        if self._data[:4] == b"FUGG" or int.from_bytes(self._data[4:8], "big") in range(1, 256):
            hint = "use the little-endian file of the same model, or convert this one with `gguf-convert-endian`"
            raise self._error("is a big-endian GGUF file; only little-endian is supported", hint)
        if version not in (2, 3):
            raise self._error(f"has GGUF version {version}; supported: 2 and 3")
        count, pairs = self._count(24, "tensors"), self._count(12, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            metadata[key] = self._value(self._scalar("<I"), key)
        found = [self._info() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._error(f"has an alignment of {alignment!r:.40}; it must be from 1 to 1,048,576")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, Info] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                raise self._error(f"has two tensors `{name}`")
            tensors[name] = self._placed(name, shape, kind, start + offset)
        return metadata, tensors

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Info:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise self._error(f"has the tensor `{name}` in the unknown type {kind}") from None
        if shape and shape[-1] % block:
            raise self._error(f"has rows of {shape[-1]} numbers in `{name}`; its type has blocks of {block}")
        size = prod(shape) // block * block_bytes
        if offset + size > len(self._data):
            raise self._error(
                f"declares that `{name}` ends at byte {offset + size:,}, but has {len(self._data):,} bytes"
            )
        return Info(shape, GGMLQuantizationType(kind).name, offset, size)

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dims = self._scalar("<I")
        if dims > _MOST_DIMS:
            raise self._error(f"has a tensor with {dims} axes; the maximum is {_MOST_DIMS}")
        shape = tuple(self._scalar("<Q") for _ in range(dims))
        return name, shape[::-1], self._scalar("<I"), self._scalar("<Q")

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _count(self, least: int, what: str) -> int:
        """A count of entries of at least `least` bytes each, checked against the bytes that are left."""
        count: int = self._scalar("<Q")
        if count * least > len(self._data) - self._at:
            raise self._error(f"declares {count:,} {what}, but has {len(self._data):,} bytes")
        return count

    def _string(self) -> str:
        length = self._count(1, "characters in a name or text")
        self._at += length
        try:
            return self._data[self._at - length : self._at].decode()
        except UnicodeDecodeError:
            raise self._error("has a text that is not UTF-8") from None

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._error(f"has a value of the unknown type {kind} at `{key}`")
        inner = self._scalar("<I")
        if inner == _STRING:
            return [self._string() for _ in range(self._count(8, f"texts at `{key}`"))]
        if inner not in _SCALARS:
            raise self._error(f"has a list of the unknown type {inner} at `{key}`")
        size = struct.calcsize(_SCALARS[inner])
        count = self._count(size, f"numbers at `{key}`")
        self._at += count * size
        return np.frombuffer(self._data, _SCALARS[inner], count, self._at - count * size).tolist()
