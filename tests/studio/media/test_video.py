from __future__ import annotations

import io
import struct
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.errors import MediaError


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 9), fps=st.sampled_from([8, 24, 29.97]), side=st.sampled_from([8, 10, 12, 14]))
def test_video_comes_back_nearly(seed, fps, side):
    small = np.random.default_rng(seed).integers(0, 255, (3, 4, 5, 3), np.uint8)
    frames = small.repeat(8, 1).repeat(side, 2)  # (T, 32, 5 * side, 3), smooth enough for chroma at half size
    video = studio.Video(frames, fps)
    again = studio.Video.decode(video.data)
    assert again == video, "the bytes are the identity"
    assert again.fps == pytest.approx(fps, rel=1e-3)
    assert again.frames.shape == frames.shape
    assert np.abs(again.frames.astype(int) - frames).mean() < 8
    assert studio.Video(frames, fps).data == video.data, "encoding is deterministic"
    with pytest.raises(MediaError):
        studio.Video.decode(video.data[: len(video.data) // 2])


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((1, 3, 4, 3), np.uint8), 8),
        (np.zeros((1, 4, 4, 4), np.uint8), 8),
        (np.zeros((0, 4, 4, 3), np.uint8), 8),
        (np.zeros((1, 4, 4, 3), np.float32), 8),
        (np.zeros((1, 4, 4, 3), np.uint8), 0),
        (np.zeros((1, 4, 4, 3), np.uint8), float("nan")),
    ],
)
def test_bad_video_is_refused(frames, fps):
    with pytest.raises(MediaError):
        studio.Video(frames, fps)


def moving(count=6, side=64):
    """A square that goes right, and up by turns, on white."""
    frames = np.full((count, side, side, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        frame[10 + index % 3 : 30 + index % 3, 5 * index : 5 * index + 20] = (200, 30, 60)
    return frames


def recipe(video, prompt="a square, 方块"):
    from studio.recipe import PluginRef, Recipe

    made = Recipe(
        generator="video", plugin=PluginRef(name="p", version="1"), kind="video", inputs={"prompt": prompt}, seed=1,
        output=video.ref,
    )  # fmt: skip
    return video.attach(made, None)


@pytest.mark.parametrize(("suffix", "far"), [(".mp4", 8), (".webp", 8), (".gif", 8), (".png", 0)])
def test_a_video_keeps_its_recipe_in_every_format(tmp_path, suffix, far):
    video = recipe(studio.Video(moving(), 12.5))
    again = studio.Video.open(video.save(tmp_path / f"a{suffix}"))
    assert again.recipe == video.recipe
    assert again.fps == pytest.approx(12.5)
    assert again.frames.shape == video.frames.shape
    assert np.abs(again.frames.astype(int) - video.frames).mean() <= far


def test_a_recipe_in_the_file_does_not_change_who_a_video_is(tmp_path):
    video = studio.Video(moving(), 12)
    told = recipe(video)
    path = told.save(tmp_path / "a.mp4")
    assert path.read_bytes() != video.data
    assert studio.Video.open(path) == video
    assert studio.Video.identify(path.read_bytes()) == video.sha256 == studio.Video.identify(video.data)
    assert studio.Video.open(path).attach(recipe(video, "another").recipe, None) == video


@pytest.mark.parametrize("fps", [8, 12, 25])
@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_a_clip_that_stands_still_for_a_while_is_read_as_it_was(tmp_path, suffix, fps):
    frames = moving(3).repeat([2, 1, 4], axis=0)  # writers join equal frames to one that lasts longer
    again = studio.Video.open(studio.Video(frames, fps).save(tmp_path / f"a{suffix}"))
    assert len(again.frames) == len(frames)
    assert again.fps == pytest.approx(fps, rel=0.05)
    assert np.array_equal(again.frames[0], again.frames[1])
    assert not np.array_equal(again.frames[1], again.frames[2])


@pytest.mark.parametrize(("fps", "read"), [(30, 100 / 3), (50, 50), (60, 50), (240, 50)])
def test_a_fast_gif_is_as_fast_as_players_show(tmp_path, fps, read):
    again = studio.Video.open(studio.Video(moving(), fps).save(tmp_path / "a.gif"))
    assert again.fps == pytest.approx(read)
    assert len(again.frames) == len(moving())


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_frames_without_a_length_last_as_long_as_players_show_them(tmp_path, suffix):
    first, *others = (PIL.Image.fromarray(frame) for frame in moving(3))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, duration=0)
    again = studio.Video.open(tmp_path / f"a{suffix}")
    assert (len(again.frames), again.fps) == (3, 10)


@pytest.mark.parametrize(
    ("suffix", "lasting", "fps", "shows"),
    [
        (".png", [100, 130, 100], 10, [0, 1, 2]),
        (".webp", [100, 250, 100], 10, [0, 1, 1, 2]),
        (".gif", [60, 170, 60, 80], 12.5, [0, 1, 1, 2, 3]),
    ],
)
def test_frames_of_an_animated_picture_that_last_unlike_times_are_resampled(tmp_path, suffix, lasting, fps, shows):
    first, *others = (PIL.Image.fromarray(frame) for frame in moving(len(lasting)))
    how = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, duration=lasting, **how)
    video = studio.Video.open(tmp_path / f"a{suffix}")
    assert video.fps == pytest.approx(fps, rel=1e-3)
    assert [nearest(each, len(lasting)) for each in video.frames] == shows
    assert "resampled to" in video.notices[0]


def nearest(frame, count):
    return int(np.abs(moving(count).astype(int) - frame).mean((1, 2, 3)).argmin())


def encoded(frames, at, rate=10, size=None, form="mp4", codec="libx264", **tags):
    """A file of frames that begin at these ticks of 1 / rate seconds."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for begins, frame in zip(at, frames, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = begins, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(("codec", "form"), [("snow", "avi"), ("svq1", "mov")])
def test_a_codec_that_is_not_listed_is_not_used(codec, form):
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height = stream.width = 32
        stream.pix_fmt = {"snow": "yuv420p", "svq1": "yuv410p"}[codec]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match=f"the codec of the video is `{codec}`, which is not supported"):
        studio.Video.decode(buffer.getvalue())


@pytest.mark.parametrize(
    ("codec", "form"),
    [("libx265", "mp4"), ("libsvtav1", "mp4"), ("libvpx", "webm"), ("libvpx-vp9", "webm"), ("mpeg4", "avi"),
     ("msmpeg4", "avi"), ("msmpeg4v2", "avi"), ("mpeg2video", "mpegts"), ("mpeg1video", "mpeg"), ("flv", "flv"),
     ("mjpeg", "mov"), ("ffv1", "matroska"), ("huffyuv", "avi"), ("prores", "mov"), ("rawvideo", "avi")],
)  # fmt: skip
def test_listed_codecs_are_read(codec, form):
    import av

    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV cannot write {codec}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height = stream.width = 64
        stream.pix_fmt = {"mjpeg": "yuvj420p", "prores": "yuv422p10le", "huffyuv": "yuv422p"}.get(codec, "yuv420p")
        for frame in np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert studio.Video.decode(buffer.getvalue()).frames.shape[1:] == (64, 64, 3)


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(
    ("at", "shows"),
    [
        ([0, 1, 2, 4, 5], [0, 1, 2, 2, 3, 4]),  # one was dropped
        ([0, 1, 2, 7, 8], [0, 1, 2, 2, 2, 2, 2, 3, 4]),
    ],
)
def test_frames_that_last_unlike_times_are_resampled_to_one_rate(form, at, shows):
    video = studio.Video.decode(encoded(moving(5), at, form=form))
    assert video.fps == pytest.approx(10, rel=1e-2)
    assert [nearest(each, 5) for each in video.frames] == shows
    assert "resampled to 10" in video.notices[0]


def test_a_clip_at_one_rate_has_no_notice():
    video = studio.Video.decode(encoded(moving(5), range(5)))
    assert (video.fps, len(video.frames), video.notices) == (10, 5, ())


def test_a_file_of_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="contains no video"):
        studio.Video.open(path)


@settings(max_examples=20, deadline=None)
@given(suffix=st.sampled_from([".webp", ".gif", ".png"]), end=st.floats(0.02, 0.6))
def test_truncated_animations_are_refused(suffix, end):
    from studio.media import animation

    data = animation.write(moving(), 12, suffix, "")
    with pytest.raises(MediaError):
        studio.Video.decode(data[: int(end * len(data))])


TURNS = {  # a display matrix (a, b, c, d) -> where the mark in the upper left corner comes to
    (1, 0, 0, 1): "upper left", (0, 1, -1, 0): "upper right", (-1, 0, 0, -1): "lower right",
    (0, -1, 1, 0): "lower left", (-1, 0, 0, 1): "upper right", (1, 0, 0, -1): "lower left",
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_clips_come_as_their_display_matrix_turns_them(turn):
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :24, :24] = 255
    data = bytearray(encoded(frames, range(3)))
    at = data.find(b"tkhd") + 44
    a, b, c, d = (each * 65536 for each in turn)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    shown = studio.Video.decode(bytes(data)).frames[0]
    assert shown.shape[:2] == ((64, 96) if turn[0] else (96, 64))
    corners = {
        f"{v} {h}": shown[y, x, 0] for v, y in (("upper", 4), ("lower", -5)) for h, x in (("left", 4), ("right", -5))
    }
    assert [name for name, value in corners.items() if value > 128] == [TURNS[turn]]


@pytest.mark.parametrize(("size", "luma", "matrix"), [((720, 1280), 80, 1), ((64, 64), 90, 2)])
def test_hd_is_written_as_bt709_that_says_so_and_read_back(size, luma, matrix):
    import av

    frames = np.empty((2, *size, 3), np.uint8)
    frames[:] = (200, 40, 40)
    video = studio.Video(frames, 24)
    with av.open(io.BytesIO(video.data)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (matrix,) * 3
        assert abs(int(next(container.decode(video=0)).to_ndarray(format="yuv420p")[0, 0]) - luma) <= 2
    assert np.abs(studio.Video.decode(video.data).frames.astype(int) - frames).max() <= 4


def test_hd_that_does_not_name_its_matrix_is_read_as_players_do():
    frames = np.empty((1, 720, 1280, 3), np.uint8)
    frames[:] = (200, 40, 40)  # encoded as BT.601, which players take for BT.709
    shown = studio.Video.decode(encoded(frames, [0])).frames[0, 0, 0].astype(int)
    assert np.abs(shown - [212, 54, 36]).max() <= 4
