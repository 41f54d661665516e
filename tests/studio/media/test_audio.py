"""Sound files: WAV, FLAC, MP3 and Ogg, written and read; damage is told."""

from __future__ import annotations

import io
import struct
import wave
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import studio
from studio.errors import MediaError
from studio.media import sounds

SOUND = st.tuples(st.integers(1, 3), st.integers(0, 60)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32))
)


def tone(channels: int = 2, rate: int = 48_000, seconds: float = 0.5) -> studio.Audio:
    """A sine of 440 Hz in the first channel, of 880 Hz in the second, and so on."""
    t = np.arange(int(rate * seconds)) / rate
    return studio.Audio(
        np.stack([0.5 * np.sin(2 * np.pi * 440 * (i + 1) * t) for i in range(channels)]).astype(np.float32), rate
    )


def pitch(sound: studio.Audio, channel: int) -> float:
    """The strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(sound.waveform[channel]))
    return float(spectrum.argmax() * sound.rate / sound.waveform.shape[1])


def pcm(width: int, samples: bytes, channels: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(samples)
    return buffer.getvalue()


@given(waveform=SOUND, rate=st.integers(1, 192_000))
def test_a_wav_file_of_studio_comes_back(waveform: Any, rate: int) -> None:
    made = studio.Audio(waveform, rate)
    again = studio.Audio.decode(made.data)
    assert again == made
    assert again.rate == rate
    assert np.array_equal(again.waveform, waveform)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_is_read_to_the_bit(width: int) -> None:
    top = bytes([255]) if width == 1 else (2 ** (8 * width - 1) - 1).to_bytes(width, "little")
    low = bytes([0]) if width == 1 else (-(2 ** (8 * width - 1))).to_bytes(width, "little", signed=True)
    sound = studio.Audio.decode(pcm(width, (top + low) * 3))
    assert sound.waveform.tolist() == [[np.float32(1 - 2 ** (1 - 8 * width))] * 3, [-1] * 3]
    assert sound.rate == 8000


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".ogg", ".opus"])
@pytest.mark.parametrize(("channels", "rate"), [(1, 48_000), (2, 48_000), (2, 22_050), (1, 7_000)])
def test_other_formats_are_written_and_read(suffix: str, channels: int, rate: int, tmp_path: Path) -> None:
    sound = tone(channels, rate)
    again = studio.Audio.open(sound.save(tmp_path / f"tone{suffix}"))
    assert len(again.waveform) == channels
    assert again.waveform.shape[1] / again.rate == pytest.approx(0.5, abs=0.06)  # MP3 has whole blocks
    for channel in range(channels):
        assert pitch(again, channel) == pytest.approx(440 * (channel + 1), abs=5)
    if suffix == ".flac":
        assert again.rate == rate
        assert np.abs(again.waveform - sound.waveform).max() <= 2**-23
    else:
        assert again.rate in (rate, 48_000)


def test_the_recipe_is_in_the_file(tmp_path: Path) -> None:
    with studio.Studio(home=tmp_path / "home", device="cpu") as host:
        recipe = host.generate("template", text="a", seed=1).recipe
    assert recipe is not None
    for suffix in sounds.FORMATS:
        path = tone().attach(recipe, None).save(tmp_path / f"tone{suffix}")
        found = studio.Audio.open(path).recipe
        assert found is not None
        assert found.spec == recipe.spec


@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_too_many_channels_for_a_format(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=rf"{suffix} files have 1 or 2 channels, and the sound has 3") as refused:
        tone(3).save(tmp_path / f"a{suffix}")
    assert refused.value.hint == "choose .flac or .wav"
    assert not list(tmp_path.iterdir())
    assert studio.Audio.open(tone(3).save(tmp_path / "a.flac")).waveform.shape[0] == 3


@pytest.mark.parametrize("end", [0, 3, 11, 30, 50, 57, 60, 100])
def test_truncated_wav_is_refused(end: int) -> None:
    data = studio.Audio(np.zeros((1, 14), np.float32), 8000).data
    with pytest.raises(MediaError):
        studio.Audio.decode(data[:end])


@pytest.mark.parametrize("suffix", [".flac", ".ogg"])
def test_a_sound_with_a_hole_is_refused(suffix: str) -> None:
    rng = np.random.default_rng(0)
    data = sounds.encode(rng.uniform(-0.5, 0.5, (2, 48_000)).astype(np.float32), 48_000, suffix, "")
    middle = len(data) // 2
    with pytest.raises(MediaError, match="truncated"):
        studio.Audio.decode(data[:middle] + bytes(2000) + data[middle + 2000 :])


def test_a_wav_that_was_written_to_a_pipe_is_read() -> None:
    data = bytearray(pcm(2, b"\1\2\3\4" * 100))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert studio.Audio.decode(bytes(data)).waveform.shape == (2, 100)


def test_the_sound_of_a_video_and_a_video_without() -> None:
    sound = tone(1)
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    with pytest.raises(MediaError, match="contains no sound"):
        studio.Audio.decode(studio.Video(frames, 12).data)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=48_000, layout="mono")
        for frame in sounds._frames(sound.waveform, sound.rate, 1):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert pitch(studio.Audio.decode(buffer.getvalue()), 0) == pytest.approx(440, abs=5)


def test_a_codec_that_is_not_listed_is_not_used() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream: Any = container.add_stream("adpcm_ms", rate=48_000, layout="mono")
        for frame in sounds._frames(tone(1).waveform, 48_000, 1):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="the codec of the sound is `adpcm_ms`, which is not supported"):
        studio.Audio.decode(buffer.getvalue())


@pytest.mark.parametrize("suffix", [".mp3", ".ogg", ".opus"])
def test_a_sound_without_samples_is_not_written_in_a_format_that_has_none(suffix: str, tmp_path: Path) -> None:
    empty = studio.Audio(np.zeros((1, 0), np.float32), 8000)
    with pytest.raises(MediaError, match=f"a sound without samples cannot be written as {suffix}"):
        empty.save(tmp_path / f"a{suffix}")
    assert studio.Audio.open(empty.save(tmp_path / "a.flac")).waveform.shape == (1, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello, this is not a sound at all", "not in a supported format"),
        (pcm(2, b"", 9), "9 channels; 1 to 8 are supported"),
        (b"RIFF" + struct.pack("<I", 100) + b"WAVE" + bytes(20), "truncated: it has 32 of 108 bytes"),
        (b"fLaC" + bytes(60), "not in a supported format"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(MediaError, match=said):
        studio.Audio.decode(data)


def test_a_long_sound_is_refused_before_it_is_decoded() -> None:
    data = bytearray(sounds.encode(np.zeros((1, 48_000), np.float32), 48_000, ".mp3", ""))
    with pytest.raises(MediaError, match=r"MiB when decoded; the limit is 512 MiB"):
        sounds.decode(bytes(data) * 3000, lambda *_: pytest.fail("nothing may be decoded"))


@settings(max_examples=40)
@given(suffix=st.sampled_from([".flac", ".mp3", ".ogg", ".wav"]), place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_damage_is_a_media_error_or_another_sound(suffix: str, place: float, byte: int) -> None:
    data = bytearray(pcm(2, b"\1\2" * 400, 1))
    if suffix != ".wav":
        data = bytearray(sounds.encode(tone(1, 48_000, 0.1).waveform, 48_000, suffix, ""))
    data[int(place * len(data))] = byte
    with suppress(MediaError):
        sounds.decode(bytes(data), lambda *_: None)


@pytest.mark.parametrize(("shape", "rate"), [((3,), 8000), ((0, 3), 8000), ((9, 3), 8000), ((1, 3), 0)])
def test_bad_samples_are_refused(shape: tuple[int, ...], rate: int) -> None:
    with pytest.raises(MediaError):
        studio.Audio(np.zeros(shape), rate)
