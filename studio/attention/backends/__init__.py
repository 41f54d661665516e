"""Studio's own attention backends, one per file. Their base class is in `studio/attention/backend.py`."""

from __future__ import annotations

from studio.attention.backend import Backend
from studio.attention.backends.chunked import Chunked
from studio.attention.backends.flex import Flex
from studio.attention.backends.reference import Reference
from studio.attention.backends.sdpa import Cudnn, Efficient, Flash, Math
from studio.attention.backends.varlen import Varlen
from studio.attention.backends.xformers import Xformers


def built_in() -> tuple[Backend, ...]:
    """New instances of all backends that come with Studio."""
    return Flash(), Efficient(), Cudnn(), Math(), Chunked(), Flex(), Varlen(), Xformers(), Reference()
