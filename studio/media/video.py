"""Videos: H.264 in MP4 with PyAV, or an animated picture (see `animation`).

Files are decoded in a separate process (see `sandbox`, `clips`).

Try it: ``python -c "import studio; print(studio.Video.open('a.mp4').frames.shape)"``
"""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

from studio.caching import cached_property
from studio.errors import MediaError
from studio.media import animation, clips, sandbox
from studio.media import label as labels
from studio.media.base import Media, damaged, recipe_json, recipe_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_OURS = (b'"schema_version"', b'"ContentProducer"')  # marks of a recipe and of a label, which `identify` looks at
_BT709, _LIMITED = 1, 1  # as FFmpeg numbers them
_LARGE = 4096 * 2304  # pixels of a frame above which x264 keeps no other frames, which would need gigabytes


class Video(Media):
    """Frames at a constant rate: uint8 (T, H, W, 3), T >= 1, H and W even; `fps` from 1 to 240.

    H.264 is lossy, so the identity is that of the encoded bytes: they are encoded once, deterministically (one thread,
    CRF 16), and kept by `decode`. A recipe and a label in the file do not change it. `save` writes WebP, GIF, AVIF or
    animated PNG if the file name ends so. MP4s of HD size are BT.709, and tagged so.
    """

    media_type, suffix, kind, noun = "video/mp4", ".mp4", "video", "a video"
    has_label = True
    others = tuple(animation.FORMATS)
    max_file_bytes = 512 << 20

    def __init__(self, frames: NDArray[np.uint8], fps: float) -> None:
        _check(frames, fps)
        self._hold(frames.copy(), fps)

    def _hold(self, frames: NDArray[np.uint8], fps: float) -> None:
        """Set the frames without copying them."""
        frames.setflags(write=False)
        self.frames = frames
        self.fps = float(fps)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """The player that a notebook shows."""
        return {"text/plain": repr(self), "text/html": f'<video controls loop src="{self.data_url()}"></video>'}

    def samples(self) -> NDArray[np.generic]:
        """The frames, uint8 (T, H, W, 3)."""
        return self.frames

    @cached_property
    def data(self) -> bytes:
        """The video as MP4."""
        import av

        height, width = self.frames.shape[1:3]
        hd = clips.is_hd(width, height)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
            stream.height, stream.width = height, width
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            if hd:
                codec = stream.codec_context
                codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
                codec.color_range = _LIMITED
            # mbtree is off: for small frames its assembly reads uninitialized memory, and the bytes vary.
            more = ":ref=1:bframes=0:rc-lookahead=0" if width * height > _LARGE else ""
            stream.options = {"crf": "16", "preset": "medium", "flags": "+bitexact", "x264-params": "mbtree=0" + more}
            for frame in self.frames:
                shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
                if hd:
                    shown = shown.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", threads=1)
                    shown.color_trc = shown.color_primaries = _BT709
                container.mux(stream.encode(shown))
            container.mux(stream.encode())
        return clips.remux(buffer.getvalue())  # so that the bytes are those after any later change of the recipe

    def encoded(self, suffix: str) -> bytes:
        """The MP4 or animated picture with recipe and label. Raises MediaError if Pillow was built without AVIF."""
        if suffix not in animation.FORMATS:
            return self.file_bytes()
        return animation.write(self.frames, self.fps, suffix, recipe_json(self.recipe), self.label)

    def file_bytes(self) -> bytes:
        """The MP4 with the recipe as its comment, and the AI label. A label of another program is in `data` already."""
        comment = recipe_json(self.recipe)
        label = self.label if self.label and self.label.is_own else None
        return clips.remux(self.data, comment, label) if comment or label else self.data

    @classmethod
    def identify(cls, file: bytes) -> str:
        """The identity of the video in these bytes, which does not depend on a recipe or a label in the file."""
        if animation.is_picture(file):
            return cls.decode(file).sha256
        if not any(mark in file for mark in _OURS) or not clips.is_known(file):
            return super().identify(file)
        _, pieces = sandbox.run("demuxed", file, "the video")
        return super().identify(bytes(pieces["file"]) or file)

    def matches(self, file: bytes) -> bool:
        """Whether this video is in these bytes. Those that `save` would write need not be decoded."""
        return file == self.file_bytes() or super().matches(file)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode the first video stream, or an animated picture, with the recipe if Studio wrote one, and the AI label.

        Frames are rotated upright, with square pixels, at a constant rate; `notices` report repeated or dropped frames.
        Raises MediaError if there is no video, if it is damaged, or if it has more than 512 MiB of frames.
        """
        import numpy as np

        if not clips.is_known(data):
            raise damaged("the video", clips.READ)
        moving = animation.is_picture(data)
        if moving:
            animation.check(data)
        found, pieces = sandbox.run("decode", data, "the video")
        width, height = found["size"]
        frames = np.frombuffer(pieces["frames"], np.uint8).reshape(-1, height, width, 3)
        _check(frames, found["fps"])
        video = cls.__new__(cls)
        video._hold(frames, found["fps"])
        if not moving:
            video.__dict__["data"] = bytes(pieces["file"]) or data
        text = found["text"]
        recipe, unread = recipe_of(text if '"schema_version"' in text else None)
        label = labels.of_xmp(found["xmp"]) or labels.of_tags(found["aigc"], "")
        if moving and label and not label.is_own:
            label = replace(label, id="")  # this content is another file
        return video.attach(recipe, None).labelled(label).noticing((*found["notices"], *unread))


def _check(frames: NDArray[np.uint8], fps: float) -> None:
    """Raise MediaError for an invalid frame array or frame rate."""
    shape = tuple(frames.shape)
    if str(frames.dtype) != "uint8" or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise MediaError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {shape}")
    if shape[1] % 2 or shape[2] % 2:
        raise MediaError(f"height and width must be even for H.264, not {shape[1]} and {shape[2]}")
    if not 1 <= fps <= 240:
        raise MediaError(f"fps is {fps}; it must be from 1 to 240")
