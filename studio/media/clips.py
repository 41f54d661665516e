"""Decoding videos, in a separate process (see `sandbox`): FFmpeg's containers, and animated pictures.

FFmpeg uses only the containers and codecs listed here, on bytes in memory: none that opens a file or an address.
Frames are counted by their packets before decoding; they are rotated upright, with square pixels, at a constant rate.

Try it: ``python -c "from studio.media.clips import demuxed; print(demuxed(open('a.mp4', 'rb').read()))"``
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError
from studio.media import animation
from studio.media import label as labels
from studio.media.base import damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv"
CODECS = ("h264,hevc,av1,libdav1d,libaom-av1,vp8,vp9,libvpx,libvpx-vp9,mpeg4,msmpeg4v2,msmpeg4,mpeg1video,mpeg2video,"
          "h263,flv,vp6f,dvvideo,v210,mjpeg,png,theora,prores,dnxhd,ffv1,huffyuv,ffvhuff,rawvideo")  # fmt: skip
READ = "MP4, MOV, WebM, Matroska, AVI, MPEG, Ogg, FLV, GIF, WebP, PNG, AVIF"
# Exact names of the allowed formats and codecs; no protocols, because the bytes are in memory.
OPTIONS = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS, "protocol_whitelist": "none"}
RATES = (1, 240)  # frames a second
_HDR = (16, 18)  # transfer functions: PQ and HLG
_UNSPECIFIED = 2  # FFmpeg's value for a missing colour matrix
Put = Callable[[str, bytes | memoryview], None]


@dataclass
class FrameRate:
    """A constant frame rate, to which frames are resampled if their durations differ.

    Attributes:
        fps: frames per second.
        total: the duration of the video in seconds if frames are resampled, else None.
        notices: messages for the user.
    """

    fps: float
    total: float | None = None
    notices: list[str] = field(default_factory=list)

    def count(self, frames: int) -> int:
        """The number of frames after resampling."""
        return frames if self.total is None else max(1, round(self.total * self.fps))

    def resample(self, frames: Iterable[tuple[float, NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
        """Resample frames, given with their start times in seconds; each lasts until the next starts."""
        if self.total is None:
            yield from (frame for _, frame in frames)
            return
        made, last = 0, None
        for begins, frame in frames:
            while last is not None and made < math.ceil(begins * self.fps - 0.5 - 1e-6):
                yield last
                made += 1
            last = frame
        while last is not None and made < self.count(0):
            yield last
            made += 1


def frame_rate(durations: Sequence[float], rate: float | None, tolerance: float) -> FrameRate:
    """The frame rate for frames with these durations in seconds.

    Args:
        durations: of the frames, in seconds.
        rate: frames per second by the file, or None.
        tolerance: durations within this many seconds count as equal.
    """
    mean = sum(durations) / len(durations)
    if max(durations) - min(durations) <= tolerance:
        return FrameRate(min(max(rate or 1 / mean, RATES[0]), RATES[1]))
    middle = sorted(durations)[len(durations) // 2]
    fps = rate if rate and abs(rate * middle - 1) < 0.02 else round(1 / max(middle, 1 / RATES[1]), 3)
    fps = min(max(fps, RATES[0]), RATES[1])
    shortest, longest = 1000 * min(durations), 1000 * max(durations)
    notice = f"its frames last from {shortest:.0f} to {longest:.0f} ms: it was resampled to {fps:g} frames a second"
    return FrameRate(fps, sum(durations), [notice])


def is_known(data: bytes) -> bool:
    """Whether the bytes start like one of the supported containers or animated pictures."""
    return (
        animation.is_picture(data)
        or data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
        or data[:4] in (b"\x1aE\xdf\xa3", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3")
        or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
        or data[:3] == b"FLV"
        or data[:1] == data[188:189] == b"G"  # MPEG-TS: packets of 188 bytes, or of 192
        or data[4:5] == data[196:197] == b"G"
    )


def decode(data: bytes, put: Put) -> dict[str, Any]:
    """Decode a video: `put` gets its frames ("frames") and the file without Studio's recipe ("file").

    Returns `size` (width, height), `fps`, `text` (a comment that may be a recipe), the AI label's field `aigc` and
    packet `xmp`, and `notices`. Raises MediaError.
    """
    return _pictures(data, put) if animation.is_picture(data) else _streams(data, put)


def check_codec(stream: Any, allowed: str, noun: str) -> None:
    """Raise MediaError for a stream whose decoder is not in the list `allowed`.

    The option `codec_whitelist` limits the decoders with which FFmpeg looks into a file, not PyAV's own.
    """
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in allowed.split(","):
        raise MediaError(
            f"the codec of {noun} is `{name}`, which is not supported", hint="encode it with another codec"
        )


def demuxed(data: bytes, put: Put | None = None) -> dict[str, Any]:
    """Return the comment of a file as `text`; if that may be Studio's recipe, or the file has Studio's label, put the
    file without them as "file".
    """
    import av

    try:
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            text, aigc = _said(container)
        if put and _is_own(text, aigc):
            put("file", remux(data))
    except (av.error.FFmpegError, ValueError, LookupError) as error:
        raise damaged("the video", READ) from error
    return {"text": text}


def remux(data: bytes, comment: str = "", label: labels.Label | None = None) -> bytes:
    """Copy the first video stream of a file, without encoding it again, to an MP4 with only the metadata `comment` and
    the AI label: the field AIGC as a key in moov.udta.meta (TC260-PG-20257A), and an XMP box at the end.
    """
    import av

    made, options = io.BytesIO(), {"fflags": "+bitexact"}
    if label:
        options["movflags"] = "use_metadata_tags"  # else FFmpeg drops keys that it does not know
    with (
        av.open(io.BytesIO(data), options=dict(OPTIONS)) as source,
        av.open(made, "w", format="mp4", options=options) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        if comment:
            target.metadata["comment"] = comment
        if label and label.aigc():
            target.metadata[labels.AIGC] = label.aigc()
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return made.getvalue() + (xmp_box(label) if label else b"")


def xmp_box(label: labels.Label) -> bytes:
    """The MP4 box with the label's XMP packet."""
    packet = labels.XMP_UUID + label.xmp().encode()
    return (8 + len(packet)).to_bytes(4, "big") + b"uuid" + packet


def xmp_in(data: bytes) -> str:
    """The packet in the first XMP box of an MP4 or MOV, or an empty text."""
    for kind, _, start, end in boxes(data):
        if kind == b"uuid" and data[start : start + 16] == labels.XMP_UUID:
            return data[start + 16 : min(end, start + 16 + labels.MAX_PACKET_BYTES)].decode("utf-8", "replace")
    return ""


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Iterate over the outer boxes of an MP4, MOV or AVIF: kind, start of the box, start and end of its body. It stops
    where there is none, as in another container.
    """
    at = 0
    while at + 8 <= len(data):
        size, kind, body = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8], "big"), body + 8
        ends = at + size if size else len(data)
        if ends < body or not kind.isascii():
            return
        yield kind, at, body, min(ends, len(data))
        at = ends


def _said(container: Any) -> tuple[str, str]:
    """The comment and the field AIGC in the metadata of a file."""
    return container.metadata.get("comment", ""), container.metadata.get(labels.AIGC, "")


def _is_own(text: str, aigc: str) -> bool:
    """Whether Studio added these to a file: then the file without them has the identity."""
    label = labels.of_tags(aigc, "")
    return '"schema_version"' in text or (label is not None and label.is_own)


def _pictures(data: bytes, put: Put) -> dict[str, Any]:
    """Decode an animated picture."""
    clip = animation.Animation.open(data)
    found = _repeats(clip.durations, clip.rounding)
    length, counts = found or (0.0, ())
    how = FrameRate(1000 / max(length, 5)) if found else frame_rate([each / 1000 for each in clip.durations], None, 0.0)
    made = 0

    def timed() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        begins = 0.0
        for index, frame in enumerate(clip.frames()):
            for _ in range(counts[index] if counts else 1):
                yield begins, frame
            begins += clip.durations[index] / 1000

    size = (0, 0)
    for frame in how.resample(timed()):
        made, size = made + 1, (frame.shape[1], frame.shape[0])
        if made == 1:
            animation.check_frames(sum(counts) if counts else how.count(len(clip.durations)), size)
        put("frames", _even(frame))
    fps = min(max(how.fps, RATES[0]), RATES[1])
    xmp = clip.xmp.decode("utf-8", "replace")
    return {"size": _sides(size), "fps": fps, "text": clip.text, "aigc": "", "xmp": xmp, "notices": how.notices}


def _repeats(durations: Sequence[float], rounding: float) -> tuple[float, list[int]] | None:
    """The duration of a frame in ms, and how often each is repeated: Pillow and libwebp merge equal frames.

    Durations have a rounding error of up to `rounding` ms. None if they are not multiples of the shortest.
    """
    least = max(min(durations), 5)
    counts = [max(1, round(each / least)) for each in durations]
    length = sum(durations) / sum(counts)
    fits = all(abs(each - count * length) <= rounding for each, count in zip(durations, counts, strict=True))
    return (length, counts) if fits else None


def _streams(data: bytes, put: Put) -> dict[str, Any]:
    """Decode the first video stream of an FFmpeg container."""
    import av

    try:
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            if not container.streams.video:
                raise MediaError("the file contains no video", hint="use a file with a video stream")
            check_codec(container.streams.video[0], CODECS, "the video")
            text, aigc = _said(container)
            how, frames = _timed(container)
            size = _shape(container.streams.video[0])
        animation.check_frames(how.count(frames), size)
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            found, size = _decoded(container, how, put)
        if not found:
            raise damaged("the video", READ)
        put("file", remux(data) if _is_own(text, aigc) else b"")
    except (av.error.FFmpegError, ValueError, LookupError, MemoryError, OverflowError) as error:
        raise damaged("the video", READ) from error
    return {"size": size, "fps": how.fps, "text": text, "aigc": aigc, "xmp": xmp_in(data), "notices": how.notices}


def _timed(container: Any) -> tuple[FrameRate, int]:
    """The frame rate and the number of frames, from the packets only."""
    stream = container.streams.video[0]
    packets = [each for each in container.demux(stream) if each.size and not each.is_discard]
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if len(packets) < 2 or any(each.pts is None for each in packets):
        return FrameRate(min(max(rate, RATES[0]), RATES[1])), len(packets)
    base = float(stream.time_base)
    begins = sorted({each.pts for each in packets})
    durations = [(after - before) * base for before, after in itertools.pairwise(begins)]
    how = frame_rate(durations, rate, 0.5 / rate) if durations else FrameRate(rate)
    if how.total is not None:
        last = max(packets, key=lambda each: each.pts)
        how.total += (last.duration or 0) * base or 1 / how.fps
    return how, len(packets)


def _decoded(container: Any, how: FrameRate, put: Put) -> tuple[int, tuple[int, int]]:
    """Decode and put all frames; return their number and size."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    made, size, first = 0, (0, 0), [0.0]

    def timed() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for index, frame in enumerate(container.decode(stream)):
            begins = frame.time or 0.0
            first[:] = [begins] if not index else first
            if index == 0 and frame.color_trc in _HDR:
                how.notices.append("the video is HDR: its colours are read without tone mapping, and look flat")
            yield begins - first[0], _upright(frame, _shape_of(frame, stream))

    for frame in how.resample(timed()):
        found = (frame.shape[1], frame.shape[0])
        if made and found != size:
            raise MediaError("the frame size of the video changes", hint="encode it again at one size")
        made, size = made + 1, found
        animation.check_frames(made, size)
        put("frames", _even(frame))
    return made, _sides(size)


def _shape(stream: Any) -> tuple[int, int]:
    """Width and height from the stream's header. Raises MediaError if there are no pixels, or too many."""
    from studio.media.pictures import check_pixels

    size = (stream.codec_context.width, stream.codec_context.height)
    check_pixels(size)
    return size


def _shape_of(frame: Any, stream: Any) -> tuple[int, int]:
    """Width and height of a frame in square pixels."""
    ratio = float(stream.sample_aspect_ratio or 1)
    wide = frame.width * ratio if 0.25 <= ratio <= 4 else frame.width
    return max(2, 2 * round(wide / 2)) if ratio != 1 else frame.width, frame.height


def is_hd(width: int, height: int) -> bool:
    """Whether players assume BT.709 for a video of this size if it does not name its colour matrix."""
    return width >= 1280 or height > 576


def _upright(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The frame as players show it, uint8 (H, W, 3): with square pixels, rotated by its display matrix."""
    matrix = "ITU709" if frame.colorspace == _UNSPECIFIED and is_hd(frame.width, frame.height) else None
    made = frame.reformat(width=size[0], height=size[1], format="rgb24", src_colorspace=matrix, threads=1)
    pixels: NDArray[np.uint8] = made.to_ndarray()
    turn = _display_matrix(frame)
    if turn is None:
        return pixels
    a, b, c, d = turn  # (x, y) -> (a x + c y, b x + d y)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return pixels.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    import numpy as np

    found = next((each for each in frame.side_data if each.type.name == "DISPLAYMATRIX"), None)
    if found is None:
        return None
    a, b, _, c, d = (int(each) for each in np.frombuffer(bytes(found), np.int32)[:5])
    return a, b, c, d


def _even(frame: NDArray[np.uint8]) -> bytes:
    """Drop the last row or column if their number is odd, because H.264 needs even sizes."""
    width, height = _sides((frame.shape[1], frame.shape[0]))
    if not width or not height:
        raise MediaError("the frames of a video must have at least 2x2 pixels", hint="use a larger video")
    return frame[:height, :width].tobytes()


def _sides(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2 * 2, size[1] // 2 * 2
