"""Decoding videos, which runs in a process of its own (see `sandbox`): FFmpeg's containers, and animated pictures.

Of FFmpeg only the containers and codecs listed here are used, on bytes at hand: none that opens a file or an address.
Frames are counted from the packets before one is decoded, and come upright, with square pixels, at one rate.

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
from studio.media.base import damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv"
CODECS = ("h264,hevc,av1,libdav1d,libaom-av1,vp8,vp9,libvpx,libvpx-vp9,mpeg4,msmpeg4v2,msmpeg4v3,mpeg1video,mpeg2video,"
          "h263,flv,mjpeg,png,theora,prores,dnxhd,ffv1,huffyuv,ffvhuff,rawvideo")  # fmt: skip
READ = "MP4, MOV, WebM, Matroska, AVI, MPEG, Ogg, FLV, GIF, WebP, PNG, AVIF"
# Whole names of what FFmpeg may use; of protocols none, as the bytes are at hand.
OPTIONS = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS, "protocol_whitelist": "none"}
RATES = (1, 240)  # frames a second
_HDR = (16, 18)  # transfer functions: PQ and HLG
_UNTOLD = 2  # a colour matrix that the file does not name
Put = Callable[[str, bytes | memoryview], None]


@dataclass
class Rhythm:
    """At which rate frames are shown: those of a file as they are, or each as often as the rate needs it.

    Attributes:
        fps: frames a second.
        total: seconds that all of them last; None where they are taken as they are.
        notices: what the user must know of it.
    """

    fps: float
    total: float | None = None
    notices: list[str] = field(default_factory=list)

    def count(self, frames: int) -> int:
        """How many frames come of so many."""
        return frames if self.total is None else max(1, round(self.total * self.fps))

    def shown(self, frames: Iterable[tuple[float, NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
        """Frames with the seconds at which each begins -> frames at the rate: each lasts until the next begins."""
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


def rhythm(lasting: Sequence[float], rate: float | None, slack: float) -> Rhythm:
    """The rate of frames that last so many seconds each.

    Args:
        rate: what the file says, frames a second; None if it says nothing.
        slack: seconds by which frames may differ and count as equal.
    """
    mean = sum(lasting) / len(lasting)
    if max(lasting) - min(lasting) <= slack:
        return Rhythm(min(max(rate or 1 / mean, RATES[0]), RATES[1]))
    middle = sorted(lasting)[len(lasting) // 2]
    fps = rate if rate and abs(rate * middle - 1) < 0.02 else round(1 / max(middle, 1 / RATES[1]), 3)
    fps = min(max(fps, RATES[0]), RATES[1])
    shortest, longest = 1000 * min(lasting), 1000 * max(lasting)
    notice = f"its frames last from {shortest:.0f} to {longest:.0f} ms: it was resampled to {fps:g} frames a second"
    return Rhythm(fps, sum(lasting), [notice])


def is_known(data: bytes) -> bool:
    """Whether the bytes begin as one of the containers or animated pictures does that are read."""
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
    """Decode a video: `put` gets its frames ("frames") and, without Studio's recipe, the file ("file").

    Returns `size` (width, height), `fps`, `text` (a comment, where a recipe may be) and `notices`. Raises MediaError.
    """
    return _pictures(data, put) if animation.is_picture(data) else _streams(data, put)


def demuxed(data: bytes, put: Put | None = None) -> dict[str, Any]:
    """The comment of a file as `text`, and the file without it, put as "file" where it may be Studio's recipe."""
    import av

    try:
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            text = container.metadata.get("comment", "")
        if put and '"schema_version"' in text:
            put("file", remux(data))
    except (av.error.FFmpegError, ValueError, LookupError) as error:
        raise damaged("the video", READ) from error
    return {"text": text}


def remux(data: bytes, comment: str = "") -> bytes:
    """The first video stream of a file in an MP4 that says `comment` and nothing else; its packets stay as they are."""
    import av

    made = io.BytesIO()
    with (
        av.open(io.BytesIO(data), options=dict(OPTIONS)) as source,
        av.open(made, "w", format="mp4", options={"fflags": "+bitexact"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        if comment:
            target.metadata["comment"] = comment
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return made.getvalue()


def _pictures(data: bytes, put: Put) -> dict[str, Any]:
    """Decode an animated picture."""
    clip = animation.Animation.open(data)
    found = _repeats(clip.lasting, clip.rounded)
    length, counts = found or (0.0, ())
    how = Rhythm(1000 / max(length, 5)) if found else rhythm([each / 1000 for each in clip.lasting], None, 0.0)
    made = 0

    def timed() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        begins = 0.0
        for index, frame in enumerate(clip.frames()):
            for _ in range(counts[index] if counts else 1):
                yield begins, frame
            begins += clip.lasting[index] / 1000

    size = (0, 0)
    for frame in how.shown(timed()):
        made, size = made + 1, (frame.shape[1], frame.shape[0])
        if made == 1:
            animation.check_frames(sum(counts) if counts else how.count(len(clip.lasting)), size)
        put("frames", _even(frame))
    fps = min(max(how.fps, RATES[0]), RATES[1])
    return {"size": _sides(size), "fps": fps, "text": clip.text, "notices": how.notices}


def _repeats(durations: Sequence[float], rounded: float) -> tuple[float, list[int]] | None:
    """How many ms a frame lasts, and how many frames each stands for, as Pillow and libwebp write equal ones as one.

    Durations are off by up to `rounded` ms. None where they are not multiples of the shortest.
    """
    least = max(min(durations), 5)
    counts = [max(1, round(each / least)) for each in durations]
    length = sum(durations) / sum(counts)
    fits = all(abs(each - count * length) <= rounded for each, count in zip(durations, counts, strict=True))
    return (length, counts) if fits else None


def _streams(data: bytes, put: Put) -> dict[str, Any]:
    """Decode the first video stream of a container of FFmpeg's."""
    import av

    try:
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            if not container.streams.video:
                raise MediaError("the file contains no video", hint="use a file with a video stream")
            text = container.metadata.get("comment", "")
            how, frames = _timed(container)
            size = _shape(container.streams.video[0])
        animation.check_frames(how.count(frames), size)
        with av.open(io.BytesIO(data), options=dict(OPTIONS)) as container:
            found, size = _decoded(container, how, put)
        if not found:
            raise damaged("the video", READ)
        put("file", remux(data) if '"schema_version"' in text else b"")
    except (av.error.FFmpegError, ValueError, LookupError, MemoryError, OverflowError) as error:
        raise damaged("the video", READ) from error
    return {"size": size, "fps": how.fps, "text": text, "notices": how.notices}


def _timed(container: Any) -> tuple[Rhythm, int]:
    """The rate, and how many frames there are, from the packets alone."""
    stream = container.streams.video[0]
    packets = [each for each in container.demux(stream) if each.size and not each.is_discard]
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if len(packets) < 2 or any(each.pts is None for each in packets):
        return Rhythm(min(max(rate, RATES[0]), RATES[1])), len(packets)
    base = float(stream.time_base)
    begins = sorted({each.pts for each in packets})
    lasting = [(after - before) * base for before, after in itertools.pairwise(begins)]
    how = rhythm(lasting, rate, 0.5 / rate) if lasting else Rhythm(rate)
    if how.total is not None:
        last = max(packets, key=lambda each: each.pts)
        how.total += (last.duration or 0) * base or 1 / how.fps
    return how, len(packets)


def _decoded(container: Any, how: Rhythm, put: Put) -> tuple[int, tuple[int, int]]:
    """Put all frames; return how many, and their size."""
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

    for frame in how.shown(timed()):
        found = (frame.shape[1], frame.shape[0])
        if made and found != size:
            raise MediaError("the frame size of the video changes", hint="encode it again at one size")
        made, size = made + 1, found
        animation.check_frames(made, size)
        put("frames", _even(frame))
    return made, _sides(size)


def _shape(stream: Any) -> tuple[int, int]:
    """Width and height as the stream's header has them. Raises MediaError for none, and for too many pixels."""
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
    """Whether players take BT.709 for a video of that size that does not name its colour matrix."""
    return width >= 1280 or height > 576


def _upright(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The frame as players show it, uint8 (H, W, 3): in square pixels, turned as its display matrix says."""
    matrix = "ITU709" if frame.colorspace == _UNTOLD and is_hd(frame.width, frame.height) else None
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
    """Without the last row or column where they are odd, as H.264 needs it."""
    width, height = _sides((frame.shape[1], frame.shape[0]))
    if not width or not height:
        raise MediaError("the frames of a video must have at least 2x2 pixels", hint="use a larger video")
    return frame[:height, :width].tobytes()


def _sides(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2 * 2, size[1] // 2 * 2
