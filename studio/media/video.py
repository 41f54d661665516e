"""Videos: H.264 in MP4 through PyAV, or an animated picture (see `animation`).

What a file claims is counted against limits before it is trusted. This module knows nothing of generators or stores.

Try it: ``python -c "import studio; print(studio.Video.open('a.mp4').frames.shape)"``
"""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from studio.caching import cached_property
from studio.errors import MediaError
from studio.files import write_atomically
from studio.media import animation
from studio.media.base import Media

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from studio.recipe import Recipe

V = TypeVar("V", bound="Video")
MAX_FRAME_BYTES = 2 << 30


class Video(Media):
    """Frames at a constant rate: uint8 (T, H, W, 3), T >= 1, H and W even; `fps` from 1 to 240.

    H.264 is lossy, so the identity is that of the encoded bytes: they are made once, deterministically (one thread, CRF
    16), and kept by `decode`. A recipe in the file does not change it. `save` writes WebP, GIF or animated PNG for a
    file name that says so.
    """

    media_type, suffix, kind, noun = "video/mp4", ".mp4", "video", "a video"
    others = tuple(animation.FORMATS)
    max_file_bytes = 512 << 20

    def __init__(self, frames: NDArray[np.uint8], fps: float) -> None:
        shape = tuple(frames.shape)
        if str(frames.dtype) != "uint8" or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise MediaError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {shape}")
        if shape[1] % 2 or shape[2] % 2:
            raise MediaError(f"height and width must be even, as H.264 needs it, not {shape[1]} and {shape[2]}")
        if not 1 <= fps <= 240:
            raise MediaError(f"fps is {fps}; it must be from 1 to 240")
        self.frames = frames.copy()
        self.frames.setflags(write=False)
        self.fps = float(fps)

    def samples(self) -> NDArray[np.generic]:
        """The frames, uint8 (T, H, W, 3)."""
        return self.frames

    @cached_property
    def data(self) -> bytes:
        """The video as MP4."""
        import av

        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
            stream.height, stream.width = self.frames.shape[1:3]
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            # mbtree is off: in small frames its assembly reads memory never written, and the bytes vary.
            stream.options = {"crf": "16", "preset": "medium", "flags": "+bitexact", "x264-params": "mbtree=0"}
            for frame in self.frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return _remux(buffer.getvalue())  # as any later change of the recipe in it leaves it

    def save(self, path: Path | str, *, overwrite: bool = True) -> Path:
        """Write the file in the format of its suffix, whole or not at all, with its recipe. Raises as `Media.save`."""
        ends = Path(path).suffix.lower()
        if ends not in animation.FORMATS:
            return super().save(path, overwrite=overwrite)
        data = animation.write(self.frames, self.fps, ends, self._told())
        return write_atomically(path, data, overwrite=overwrite)

    def file_bytes(self) -> bytes:
        """The MP4 with the recipe as its comment."""
        told = self._told()
        return _remux(self.data, told) if told else self.data

    def _told(self) -> str:
        """The recipe as ASCII, or nothing."""
        return json.dumps(json.loads(self.recipe.portable().to_json())) if self.recipe else ""

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The identity of the video in these bytes, which a recipe in its file does not change."""
        return cls.decode(file).sha256 if animation.is_picture(file) else super().identify(_bare(file)[0])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode the first video stream, or an animated picture; a recipe that Studio wrote comes with it.

        Raises MediaError if there is none, its frames last unlike times, or there are over 2 GiB of them.
        """
        if animation.is_picture(data):
            frames, fps, told = animation.read(data, MAX_FRAME_BYTES)
            return _even(cls, frames, min(max(fps, 1), 240)).attach(_recipe(told), None)
        bare, told = _bare(data)
        frames, fps = _decode(bare)
        video = _even(cls, frames, fps)
        video.__dict__["data"] = bare
        return video.attach(_recipe(told), None)


def _remux(data: bytes, comment: str = "") -> bytes:
    """The first video stream of a file in an MP4 that says `comment` and nothing else; its packets stay as they are."""
    import av

    made = io.BytesIO()
    options = {"fflags": "+bitexact"}
    with av.open(io.BytesIO(data)) as source, av.open(made, "w", format="mp4", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        if comment:
            target.metadata["comment"] = comment
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return made.getvalue()


def _bare(data: bytes) -> tuple[bytes, str]:
    """A file without the recipe that Studio put into it, and that recipe; other files are left as they are."""
    import av

    try:
        with av.open(io.BytesIO(data)) as container:
            told = container.metadata.get("comment", "")
        return (_remux(data), told) if _recipe(told) else (data, "")
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"the video is truncated, damaged or of an unknown format: {error}") from None


def _recipe(told: str) -> Recipe | None:
    """The recipe in a file's comment; a comment of somebody else's is none."""
    from studio.recipe import Recipe

    return Recipe.parse(told) if told.startswith("{") and '"schema_version"' in told else None


def _decode(data: bytes) -> tuple[list[NDArray[np.uint8]], float]:
    """Frames and frames a second of a file's first video stream. Raises MediaError."""
    import av
    import numpy as np

    frames: list[NDArray[np.uint8]] = []
    times: list[float] = []
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise MediaError("the file holds no video")
            rate = container.streams.video[0].average_rate or Fraction(25)
            size = 0
            for frame in container.decode(video=0):
                size += frame.width * frame.height * 3
                if size > MAX_FRAME_BYTES:
                    raise MediaError(f"the video holds more than {MAX_FRAME_BYTES:,} bytes of frames")
                frames.append(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
                times.append(frame.time or 0.0)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"the video is truncated, damaged or of an unknown format: {error}") from None
    if not frames:
        raise MediaError("the video holds no frame")
    lasting = np.diff(times)
    if len(lasting) and lasting.max() - lasting.min() > 0.5 / float(rate):
        shortest, longest = 1000 * lasting.min(), 1000 * lasting.max()
        raise MediaError(
            f"the video's frames last from {shortest:.0f} to {longest:.0f} ms; only one rate is read",
            hint=f"write it anew at a constant rate: `ffmpeg -i old.mp4 -vf fps={float(rate):.0f} new.mp4`",
        )
    return frames, float(rate)


def _even(cls: type[V], frames: list[NDArray[np.uint8]], fps: float) -> V:
    """A video of frames whose last row or column is left out where they are odd. Raises MediaError."""
    import numpy as np

    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    try:
        return cls(np.stack([frame[:height, :width] for frame in frames]), fps)
    except ValueError:
        raise MediaError("the video changes its size on the way") from None
