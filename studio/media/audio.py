"""Audio: float32 samples, as WAV files.

Try it: ``python -c "import studio; print(studio.Audio.open('a.wav').waveform.shape)"``
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from studio.errors import MediaError
from studio.media import arrays
from studio.media.base import Media, check_decoded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BLOCK = 1 << 20  # samples per conversion


class Audio(Media):
    """Audio: finite float32 samples (channels, n), 1 to 8 channels, usually in -1 … 1; `rate` in Hz."""

    media_type, suffix, kind, noun = "audio/wav", ".wav", "audio", "sound"
    max_file_bytes = 512 << 20
    also = ", (samples, rate)"

    def __init__(self, waveform: NDArray[np.floating[Any]], rate: int) -> None:
        import numpy as np

        array = np.array(waveform, dtype="<f4", order="C")
        if array.ndim != 2 or not 1 <= array.shape[0] <= 8 or not np.isfinite(array).all():
            raise MediaError(f"samples must be finite, (channels, n) with 1 to 8 channels, not of shape {array.shape}")
        if not 1 <= rate <= 768_000:
            raise MediaError(f"the rate is {rate} Hz; it must be from 1 to 768,000")
        array.setflags(write=False)
        self.waveform: NDArray[np.float32] = array
        self.rate = int(rate)

    @classmethod
    def accept(cls, value: object) -> Self:
        """Convert an input's value: an `Audio`, the path of a file, or ``(samples, rate)`` with an array or tensor of
        floats, (n,) or (channels, n). Raises ValueError, MediaError.
        """
        if isinstance(value, tuple) and len(value) == 2 and arrays.is_array(value[0]):
            return cls(arrays.samples(value[0]), arrays.rate(value[1]))
        return super().accept(value)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """The player that a notebook shows."""
        return {"text/plain": repr(self), "text/html": f'<audio controls src="{self.data_url()}"></audio>'}

    def samples(self) -> NDArray[np.generic]:
        """The samples, float32 (channels, n)."""
        return self.waveform

    @property
    def data(self) -> bytes:
        """The audio as WAV, IEEE float (format 3)."""
        return b"".join(self._content())

    def _content(self) -> Iterator[bytes]:
        channels, size = self.waveform.shape[0], self.waveform.nbytes
        head = struct.pack("<HHIIHH", _FLOAT, channels, self.rate, self.rate * channels * 4, channels * 4, 32)
        chunks = [(b"fmt ", head), (b"fact", struct.pack("<I", self.waveform.shape[1]))]
        packed = b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
        packed += b"data" + struct.pack("<I", size)
        yield b"RIFF" + struct.pack("<I", 4 + len(packed) + size) + b"WAVE" + packed
        for start in range(0, self.waveform.shape[1], _BLOCK):  # copying all at once would double the memory
            yield self.waveform[:, start : start + _BLOCK].T.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode WAV: PCM of 8, 16, 24 or 32 bits, or float of 32 or 64. Raises MediaError."""
        chunks = _riff_chunks(data)
        if len(chunks.get(b"fmt ", b"")) < 16 or b"data" not in chunks:
            raise MediaError("the WAV file has no format or no samples; it may be truncated")
        form, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
        if form == _EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
            form = struct.unpack_from("<H", chunks[b"fmt "], 24)[0]
        if not 1 <= channels <= 8:
            raise MediaError(f"the WAV file has {channels} channels; 1 to 8 are supported", hint="mix it down")
        count = len(chunks[b"data"]) // max(1, bits // 8)
        check_decoded(count * 4, "the sound", f"{count // channels:,} samples of {channels} channels")
        samples = _wav_samples(chunks[b"data"], form, bits)
        return cls(samples[: samples.size // channels * channels].reshape(-1, channels).T, rate)


def _riff_chunks(data: bytes) -> dict[bytes, memoryview]:
    """Split a WAV file into its chunks; a chunk that is longer than the file means that it is truncated."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise MediaError("not a WAV file")
    chunks: dict[bytes, memoryview] = {}
    view = memoryview(data)
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > len(data):
            raise MediaError(f"the WAV file is truncated: `{name!r}` claims {length:,} bytes")
        chunks.setdefault(name, view[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return chunks


def _wav_samples(body: memoryview, form: int, bits: int) -> NDArray[np.float32]:
    """Convert raw WAV samples to float32 in -1 … 1, interleaved."""
    import numpy as np

    if form == _FLOAT and bits in (32, 64):
        return np.frombuffer(body[: len(body) // (bits // 8) * (bits // 8)], f"<f{bits // 8}").astype(np.float32)
    if form != _PCM or bits not in (8, 16, 24, 32):
        raise MediaError(f"WAV format {form} with {bits} bits is not supported; use PCM or float")
    if bits == 8:
        made = np.frombuffer(body, np.uint8).astype(np.float32)
        made -= 128
        made /= 128
        return made
    width = bits // 8
    raw = np.frombuffer(body[: len(body) // width * width], np.uint8).reshape(-1, width)
    made = np.empty(len(raw), np.float32)
    for start in range(0, len(raw), _BLOCK):
        some = raw[start : start + _BLOCK]
        wide = np.zeros((len(some), 4), np.uint8)
        wide[:, 4 - width :] = some  # the sample in the high bytes of an int32
        made[start : start + _BLOCK] = wide.view("<i4")[:, 0] / 2**31
    return made
