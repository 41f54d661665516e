"""Fingerprints: detect whether a failed step has mutated its input states.

A step must not write into its input states; torch's own counter of such writes is off in inference mode. So a CRC-32 of
a state's tensors and arrays in host memory is computed before each step and compared if the step fails: up to 16 KiB
per state, which takes about ten microseconds; larger tensors and tensors on a GPU are not covered.

Try it: ``pytest tests/studio/engine/calls/test_fingerprint.py``
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from studio.generator import State

MOST_BYTES = 16 << 10
_PLAIN = frozenset({int, float, bool, str, bytes, type(None)})  # immutable types


def fingerprint(state: State) -> int:
    """A number that changes with the bytes of the state's tensors and arrays, as far as they are looked at."""
    found, left = 0, MOST_BYTES
    for value in vars(state).values():
        if type(value) in _PLAIN or (type(value) is tuple and not value):  # such as notices, mostly
            continue
        for each in _values(value):
            data = _bytes(each, left)
            if data is not None:
                found = zlib.crc32(data, found)
                left -= data.nbytes
    return found


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value[:64]:
            yield from _values(each)
    elif type(value) not in _PLAIN:
        yield value


def _bytes(value: Any, most: int) -> Any:
    """The numbers of a tensor or array as zlib reads them, if it is one to look at."""
    cls = type(value)
    if hasattr(cls, "untyped_storage"):
        import torch

        if not (value.is_cpu and value.layout == torch.strided and 0 < value.nbytes <= most):
            return None
        if not value.is_contiguous() or not value.ndim:
            value = value.contiguous().view(-1)
        return value.detach().view(torch.uint8).numpy()
    if cls.__module__ != "numpy" or not hasattr(cls, "flags"):
        return None
    plain = 0 < value.nbytes <= most and not value.dtype.hasobject and value.flags.c_contiguous
    return memoryview(value).cast("B") if plain else None
