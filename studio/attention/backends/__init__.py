"""The kernels that attention can run on, one a file, and the contract they share in `studio/attention/backend.py`."""

from __future__ import annotations

from studio.attention.backend import Backend
from studio.attention.backends.chunked import Chunked
from studio.attention.backends.flex import Flex
from studio.attention.backends.reference import Reference
from studio.attention.backends.sdpa import Cudnn, Efficient, Flash, Math
from studio.attention.backends.varlen import Varlen
from studio.attention.backends.xformers import Xformers


def own() -> tuple[Backend, ...]:
    """A new one of each that comes with Studio."""
    return Flash(), Efficient(), Cudnn(), Math(), Chunked(), Flex(), Varlen(), Xformers(), Reference()
