"""Audio: float32 samples, as WAV files; FLAC, MP3 and Ogg through PyAV (see `sounds`).

Files are decoded in a separate process (see `sandbox`), except those that Studio wrote as WAV.

Try it: ``python -c "import studio; print(studio.Audio.open('a.wav').waveform.shape)"``
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from studio.errors import MediaError
from studio.media import arrays, riff, sandbox, sounds
from studio.media import label as labels
from studio.media.base import Media, check_decoded, damaged, recipe_json, recipe_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOAT = 3  # WAV's number for IEEE float
_BLOCK = 1 << 20  # samples per conversion
_MOST_HZ = 768_000
_AIGC, _XMP = b"AIGC", b"_PMX"  # chunks of the AI label


class Audio(Media):
    """Audio: finite float32 samples (channels, n), 1 to 8 channels, usually in -1 … 1; `rate` in Hz."""

    media_type, suffix, kind, noun = "audio/wav", ".wav", "audio", "sound"
    has_label = True
    others = sounds.FORMATS
    max_file_bytes = 512 << 20
    also = ", (samples, rate)"

    def __init__(self, waveform: NDArray[np.floating[Any]], rate: int) -> None:
        import numpy as np

        array = np.array(waveform, dtype="<f4", order="C")
        if array.ndim != 2 or not 1 <= array.shape[0] <= 8 or not np.isfinite(array).all():
            raise MediaError(f"samples must be finite, (channels, n) with 1 to 8 channels, not of shape {array.shape}")
        if not 1 <= rate <= _MOST_HZ:
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
        yield _head(self.waveform.shape[0], self.rate, self.waveform.shape[1])
        for start in range(0, self.waveform.shape[1], _BLOCK):  # copying all at once would double the memory
            yield self.waveform[:, start : start + _BLOCK].T.tobytes()

    def file_bytes(self) -> bytes:
        """The WAV with the AI label in chunks after the samples."""
        chunks = label_chunks(self.label)
        head = _head(self.waveform.shape[0], self.rate, self.waveform.shape[1], len(chunks))
        _, *samples = self._content()
        return b"".join([head, *samples, chunks])

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The identity of the sound in these bytes, which does not depend on a label in the file."""
        if (own := _own_format(file)) is None:
            return super().identify(file)
        channels, rate, start, end = own
        count = (end - start) // (4 * channels)
        return super().identify(_head(channels, rate, count) + file[start:end])

    def encoded(self, suffix: str) -> bytes:
        """The file with the AI label and, in all formats but WAV, the recipe. Raises MediaError for more channels than
        the format has.
        """
        if suffix not in sounds.FORMATS:
            return self.file_bytes()
        tags = {"comment": recipe_json(self.recipe)} if self.recipe else {}
        return sounds.encode(self.waveform, self.rate, suffix, tags | (self.label.tags() if self.label else {}))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a sound file (see `sounds.READ`); a recipe that Studio wrote comes with it.

        Raises MediaError if there is no sound, it is damaged or truncated, or it holds over 512 MiB of samples.
        """
        import numpy as np

        if (own := _own_format(data)) is not None:
            channels, rate, start, end = own
            samples = np.frombuffer(data[start:end], "<f4").reshape(-1, channels).T
            return cls(samples, rate).labelled(label_in(data, end))
        if not sounds.is_known(data):
            raise damaged("the sound", sounds.READ)
        found, pieces = sandbox.run("sound", data, "the sound")
        made = cls(np.frombuffer(pieces["frames"], np.float32).reshape(-1, found["channels"]).T, found["rate"])
        text = found["text"]
        recipe, unread = recipe_of(text if '"schema_version"' in text else None)
        label = labels.of_tags(found["aigc"], found["source"]) or label_in(data, 12)
        return made.attach(recipe, None).labelled(label).noticing(unread)


def _head(channels: int, rate: int, count: int, more: int = 0) -> bytes:
    """The beginning of a WAV file of so many samples, before the samples; `more` bytes of chunks follow them."""
    form = struct.pack("<HHIIHH", _FLOAT, channels, rate, rate * channels * 4, channels * 4, 32)
    chunks = [(b"fmt ", form), (b"fact", struct.pack("<I", count))]
    packed = b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
    size = count * channels * 4
    packed += b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 4 + len(packed) + size + more) + b"WAVE" + packed


def _own_format(data: bytes) -> tuple[int, int, int, int] | None:
    """The channels, the rate and the start and end of the samples of a file as `file_bytes` writes it, which needs no
    decoder.
    """
    start = len(_head(1, 1, 0))
    if len(data) < start:
        return None
    channels, rate, size = *struct.unpack_from("<HI", data, 22), int.from_bytes(data[start - 4 : start], "little")
    if not (1 <= channels <= 8 and 1 <= rate <= _MOST_HZ):
        return None
    count, end = size // (4 * channels), start + size
    more = len(data) - end
    if more < 0 or data[:start] != _head(channels, rate, count, more) or data[end : end + 4] not in (b"", _AIGC, _XMP):
        return None
    check_decoded(size, "the sound", f"{count:,} samples of {channels} channels")
    return channels, rate, start, end


def label_chunks(label: labels.Label | None) -> bytes:
    """The chunks of a label: AIGC (TC260-PG-202510A), and XMP (XMP specification, part 3)."""
    if label is None:
        return b""
    bodies = ((_AIGC, label.aigc().encode()), (_XMP, label.xmp().encode()))
    return b"".join(
        name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in bodies if body
    )


def label_in(data: bytes, start: int) -> labels.Label | None:
    """The label in the chunks of a WAV file from `start`."""
    found = {name: data[begins:ends] for name, begins, ends in riff.chunks(data, start) if name in (_AIGC, _XMP)}
    aigc = found.get(_AIGC, b"").decode("utf-8", "replace")
    return labels.of_xmp(found.get(_XMP, b"")) or labels.of_tags(aigc, "")
