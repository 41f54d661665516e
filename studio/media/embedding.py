"""Embeddings: vectors of float32, as .npy files. Nothing is ever unpickled.

Try it: ``python -c "import studio; print(studio.Embedding.open('a.npy').vector.shape)"``
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Self

from studio.errors import MediaError
from studio.media.base import Media

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError) as error:
            raise MediaError(f"not a .npy array: {error}") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise MediaError("not a .npy array of real numbers")
        return cls(array)
