"""Embeddings: vectors of float32, as .npy files. Nothing is ever unpickled.

Try it: ``python -c "import studio; print(studio.Embedding.open('a.npy').vector.shape)"``
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Self

from studio.errors import MediaError
from studio.media.base import Media, damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_HEADER = 10_000  # bytes, numpy's own limit


class Embedding(Media):
    """A vector of finite float32, shape (n,), n >= 1. Encoded as .npy, little-endian."""

    media_type, suffix, kind, noun = "application/x-npy", ".npy", "embedding", "an embedding"

    def __init__(self, vector: NDArray[np.floating[Any]]) -> None:
        import numpy as np

        array = np.array(vector, dtype="<f4")
        if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
            raise MediaError(f"an embedding is a vector of finite numbers; this has the shape {array.shape}, or NaN")
        array.setflags(write=False)
        self.vector: NDArray[np.float32] = array

    def samples(self) -> NDArray[np.generic]:
        """The vector, float32 (n,)."""
        return self.vector

    @property
    def data(self) -> bytes:
        """The vector as .npy, format 1.0."""
        import numpy as np

        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, self.vector, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode .npy; never unpickles. Raises MediaError."""
        import numpy as np

        file = io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError("another version")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file, max_header_size=_MAX_HEADER)
        except (ValueError, TypeError, EOFError, OSError, SyntaxError, OverflowError, MemoryError, RecursionError):
            raise damaged("the embedding", ".npy of one row of floats") from None
        if kind.kind != "f" or kind.shape or len(shape) != 1:
            raise MediaError(f"the .npy has {kind} of shape {shape}; an embedding is one row of floats"[:200])
        body = data[file.tell() :]
        if not 0 <= shape[0] * kind.itemsize <= len(body):
            raise MediaError(f"the .npy is truncated: it claims {shape[0]:,} numbers", hint="generate it again")
        return cls(np.frombuffer(body, kind, shape[0]))
