"""GGUF files: the header read with every count and size checked against the file, tensors dequantised one at a time.

The header is read here and not by the `gguf` package, whose reader trusts what it says (and takes seconds for a large
vocabulary); the package's tables and kernels turn blocks into numbers. Nothing is allocated for what a header only
claims. This module knows nothing of models.

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
    """A tensor: its shape as NumPy has it (the last axis runs fastest), its type by name, and where it stands."""

    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int


class Gguf:
    """An opened file: `metadata` by key, `tensors` by name. Raises WeightsError for all that is wrong with it."""

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
            raise self._error("is cut short within its header") from None

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The numbers of a tensor, as float32 and a copy. Raises WeightsError for a type that is not known."""
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
            message = f"has the tensor `{name}` in {info.kind}, which cannot be read"
            raise self._error(message, "take the model in F16, Q8_0, Q4_0, Q4_1 or a K-quant") from None

    def _error(self, what: str, hint: str = "get the file again: it is damaged, or no GGUF") -> WeightsError:
        return WeightsError(self.path, f"`{self.path}` {what}", hint=hint)

    def _header(self) -> tuple[dict[str, Any], dict[str, Info]]:
        if self._data[:4] not in (b"GGUF", b"FUGG"):
            raise self._error("does not begin as a GGUF file")
        self._at = 4
        version = self._scalar("<I")
        if self._data[:4] == b"FUGG" or int.from_bytes(self._data[4:8], "big") in range(1, 256):
            hint = "take the little-endian file of the same model, or convert this with `gguf-convert-endian`"
            raise self._error("is a big-endian GGUF file; only little-endian ones are read", hint)
        if version not in (2, 3):
            raise self._error(f"is of GGUF version {version}; known are 2 and 3")
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
            raise self._error(f"has rows of {shape[-1]} numbers in `{name}`; its type packs {block} at a time")
        size = prod(shape) // block * block_bytes
        if offset + size > len(self._data):
            raise self._error(f"says that `{name}` ends at byte {offset + size:,}, and has {len(self._data):,} bytes")
        return Info(shape, GGMLQuantizationType(kind).name, offset, size)

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dims = self._scalar("<I")
        if dims > _MOST_DIMS:
            raise self._error(f"has a tensor of {dims} axes; at most {_MOST_DIMS} are allowed")
        shape = tuple(self._scalar("<Q") for _ in range(dims))
        return name, shape[::-1], self._scalar("<I"), self._scalar("<Q")

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _count(self, least: int, what: str) -> int:
        """A count of things that take at least so many bytes each; the file must have room for them."""
        count: int = self._scalar("<Q")
        if count * least > len(self._data) - self._at:
            raise self._error(f"says that it has {count:,} {what}, and has {len(self._data):,} bytes")
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
