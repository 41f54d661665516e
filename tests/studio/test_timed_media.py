from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import studio
from studio.errors import MediaError

SOUND = st.tuples(st.integers(1, 3), st.integers(0, 60)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32))
)


@given(waveform=SOUND, rate=st.integers(1, 192_000))
def test_sound_comes_back(waveform, rate):
    made = studio.Audio(waveform, rate)
    again = studio.Audio.decode(made.data)
    assert again == made
    assert again.rate == rate
    assert np.array_equal(again.waveform, waveform)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_is_read(width):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(8000)
        top = bytes([255]) if width == 1 else (2 ** (8 * width - 1) - 1).to_bytes(width, "little")
        low = bytes([0]) if width == 1 else (-(2 ** (8 * width - 1))).to_bytes(width, "little", signed=True)
        file.writeframes((top + low) * 3)
    sound = studio.Audio.decode(buffer.getvalue())
    assert sound.waveform.shape == (2, 3)
    assert sound.waveform[0] == pytest.approx(1, abs=0.01)
    assert sound.waveform[1] == pytest.approx(-1, abs=0.01)


@given(end=st.integers(0, 99))
def test_truncated_sound_is_refused(end):
    data = studio.Audio(np.zeros((1, 14), np.float32), 8000).data
    with pytest.raises(MediaError):
        studio.Audio.decode(data[: min(end, len(data) - 1)])


@pytest.mark.parametrize(("shape", "rate"), [((3,), 8000), ((0, 3), 8000), ((9, 3), 8000), ((1, 3), 0)])
def test_bad_sound_is_refused(shape, rate):
    with pytest.raises(MediaError):
        studio.Audio(np.zeros(shape), rate)


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
