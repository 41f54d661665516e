"""Sound files through PyAV: decoding, which runs in a process of its own (see `sandbox`), and encoding.

Of FFmpeg only the containers and codecs listed here are used, on bytes in memory: none that opens a file or an address.

Try it: ``python -c "from studio.media.sounds import decode; print(decode(open('a.mp3', 'rb').read(), print))"``
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError
from studio.media import label as labels
from studio.media.base import check_decoded, damaged
from studio.media.clips import check_codec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from studio.media.clips import Put

CONTAINERS = "wav,w64,aiff,flac,mp3,ogg,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac"
CODECS = ("pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,"
          "pcm_f64be,pcm_alaw,pcm_mulaw,flac,mp3float,mp3,vorbis,opus,libopus,aac,alac,ac3,eac3")  # fmt: skip
READ = "WAV, FLAC, MP3, Ogg, Opus, AAC in MP4, AIFF"
OPTIONS = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS, "protocol_whitelist": "none"}
MAX_CHANNELS = 8
_LENGTHS = {"wav": 0.0, "flac": 0.0, "aiff": 0.0, "ogg": 0.2}
"""Containers that say how long the sound is, and by how many seconds that may differ. MP3 says it only in some files:
one that is cut is read as far as it goes.
"""
_HOW: dict[str, tuple[str, str, str, dict[str, str]]] = {
    ".flac": ("flac", "flac", "s32", {}),
    ".mp3": ("mp3", "libmp3lame", "fltp", {"b": "256000"}),
    ".ogg": ("ogg", "libopus", "flt", {"b": "192000"}),
    ".opus": ("ogg", "libopus", "flt", {"b": "192000"}),
}
"""Container, codec, sample format and options of the formats that are written, by suffix."""
FORMATS = tuple(_HOW)
_RATES = {"libmp3lame": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
          "libopus": (8000, 12000, 16000, 24000, 48000)}  # fmt: skip
_BLOCK = 1 << 16  # samples per frame that is encoded


def is_known(data: bytes) -> bool:
    """Whether the bytes begin as the files of one of the containers do."""
    return (
        (data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE")
        or data[:4] in (b"riff", b"fLaC", b"OggS", b"\x1aE\xdf\xa3")
        or (data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"))
        or data[:3] == b"ID3"
        or (data[:1] == b"\xff" and data[1:2] >= b"\xe0")  # an MPEG audio frame, or ADTS
        or data[4:8] == b"ftyp"
    )


def decode(data: bytes, put: Put) -> dict[str, Any]:
    """Decode the first audio stream: `put` gets its samples ("frames"), float32 (n, channels) in -1 to 1.

    Returns `rate`, `channels`, `text` (a comment, where a recipe may be) and the AI label's tags `aigc` and `source`.
    Raises MediaError.
    """
    import av

    riff = int.from_bytes(data[4:8], "little") if data[:4] == b"RIFF" else 0
    if riff != 0xFFFF_FFFF and riff + 8 > len(data):  # a program that writes to a pipe does not know the size
        raise MediaError(f"the WAV file is truncated: it has {len(data):,} of {riff + 8:,} bytes",
                         hint="use the complete file")  # fmt: skip
    try:
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            stream = _stream(container)
            check_codec(stream, CODECS, "the sound")
            rate, channels, text = stream.rate, stream.channels, tag(container, "comment")
            aigc, source = tag(container, labels.AIGC), tag(container, labels.SOURCE_TYPE)
            stated = _stated(container)
            if not 1 <= channels <= MAX_CHANNELS:
                raise MediaError(f"the sound has {channels} channels; 1 to {MAX_CHANNELS} are supported",
                                 hint="mix it down")  # fmt: skip
            length = _duration(container)
            check_decoded(length * channels * 4, "the sound", f"{length:,} samples of {channels} channels")
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            made = 0
            for block in _blocks(container, rate, channels):
                made += len(block)
                check_decoded(made * channels * 4, "the sound", f"{made:,} samples of {channels} channels")
                put("frames", block.tobytes())
    except (av.error.FFmpegError, ValueError, LookupError, MemoryError, OverflowError) as error:
        raise damaged("the sound", READ) from error
    if stated is not None and made < stated:
        raise MediaError(f"the sound is truncated: it has {made:,} of {stated:,} samples", hint="use the complete file")
    return {"rate": rate, "channels": channels, "text": text, "aigc": aigc, "source": source}


def _stream(container: Any) -> Any:
    if not container.streams.audio:
        raise MediaError("the file contains no sound", hint="use a file with an audio stream")
    return container.streams.audio[0]


def tag(container: Any, name: str) -> str:
    """A tag of the file; Ogg has it in its stream, and some writers spell it in capitals."""
    for metadata in (container.metadata, *(each.metadata for each in container.streams.audio)):
        for each in metadata:
            if each.lower() == name.lower():
                return str(metadata[each])
    return ""


def _stated(container: Any) -> int | None:
    """The least number of samples that the file must have, if its format says how long it is."""
    stream = container.streams.audio[0]
    if container.format.name not in _LENGTHS or not stream.duration:
        return None
    return int((float(stream.duration * stream.time_base) - _LENGTHS[container.format.name]) * stream.rate)


def _duration(container: Any) -> int:
    """The number of samples, from the packets only."""
    stream = container.streams.audio[0]
    ticks = sum(packet.duration or 0 for packet in container.demux(stream) if packet.size)
    return int(ticks * stream.time_base * stream.rate)


def _blocks(container: Any, rate: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """The decoded samples in pieces, float32 (n, channels)."""
    import av

    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    resampler = av.AudioResampler(format="flt")
    for frame in container.decode(stream):
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
            raise MediaError("the rate or the channels of the sound change", hint="encode it again at one rate")
        for each in resampler.resample(frame):
            yield each.to_ndarray().reshape(-1, channels)


def encode(waveform: NDArray[np.float32], rate: int, suffix: str, tags: dict[str, str]) -> bytes:
    """Encode samples (channels, n) in the format of the suffix: FLAC (24 bits), MP3 (256 kbit/s) or Opus (192 kbit/s).

    Samples outside -1 to 1 are clipped. A rate that the codec lacks becomes 48 kHz. Raises MediaError for more channels
    than the format has.
    """
    import av

    container, codec, form, options = _HOW[suffix]
    channels = len(waveform)
    if codec != "flac" and channels > 2:
        raise MediaError(f"{suffix} files have 1 or 2 channels, and the sound has {channels}",
                         hint="choose .flac or .wav")  # fmt: skip
    if codec != "flac" and not waveform.shape[1]:
        raise MediaError(f"a sound without samples cannot be written as {suffix}", hint="choose .flac or .wav")
    rates = _RATES.get(codec, (rate,))
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as target:
            stream: Any = target.add_stream(codec, rate=rate if rate in rates else 48_000, layout=_layout(channels))
            stream.format = form
            stream.thread_count = 1
            stream.options = {"flags": "+bitexact", **options}
            target.metadata.update(tags)
            for frame in _frames(waveform, rate, channels):
                target.mux(stream.encode(frame))
            target.mux(stream.encode())
    except av.error.FFmpegError as error:
        reason = f"a sound of {channels} channels at {rate:,} Hz cannot be written as {suffix}"
        raise MediaError(reason, hint="choose .wav") from error
    return buffer.getvalue()


def _frames(waveform: NDArray[np.float32], rate: int, channels: int) -> Iterator[Any]:
    """The samples as PyAV's frames."""
    import av
    import numpy as np

    for start in range(0, waveform.shape[1], _BLOCK):
        part = np.ascontiguousarray(waveform[:, start : start + _BLOCK].clip(-1, 1))
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=_layout(channels))
        frame.sample_rate = rate
        frame.pts = start
        yield frame


def _layout(channels: int) -> str:
    """FFmpeg's default layout of so many channels."""
    return ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")[channels - 1]
