from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import studio
from studio.errors import MediaError
from studio.media import sandbox


def gif(width, height, count, lasts=10, frame=(1, 1)):
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff\xff\xff"
    one = b"\x21\xf9\x04\0" + struct.pack("<H", lasts) + b"\0\0"
    one += b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\0"
    return head + one * count + b";"


def webp(side):
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        gif(65535, 65535, 2),
        gif(13000, 13000, 2),
        gif(2, 2, 100_000),
        gif(180, 180, 20_000),
        gif(8, 8, 2, frame=(60000, 60000)),
        webp(1 << 24),
    ],
    ids=["screen", "two", "many", "small", "frame", "canvas"],
)
def test_an_animated_picture_of_too_much_is_refused_by_its_header(data, monkeypatch):
    monkeypatch.setattr(sandbox, "run", None)  # not even a process is begun
    with pytest.raises(MediaError, match=r"the limit is|damaged"):
        studio.Video.decode(data)


def test_a_frame_that_lasts_as_long_as_many_is_counted_as_many():
    data = gif(2000, 2000, 1, 1)[:-1] + gif(2000, 2000, 1, 65535)[19:]
    with pytest.raises(MediaError, match="the limit is 512 MiB"):
        studio.Video.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
        b"ffconcat version 1.0\nfile a.mp4\n",
        b"#EXTM3U\n#EXTINF:10.0,\nfile:///etc/passwd\n",
    ],
)
@pytest.mark.parametrize("task", ["decode", "demuxed"])
def test_texts_that_name_files_or_addresses_are_not_demuxed(data, task):
    with pytest.raises(MediaError, match="supported format"):
        sandbox.run(task, data, "the video")


def test_the_frames_of_a_container_are_counted_before_one_is_decoded():
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 2048
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((2048, 2048, 3), np.uint8), format="rgb24")
        for index in range(50):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match=r"50 frames of 2048x2048, 600 MiB.*the limit is 512"):
        studio.Video.decode(buffer.getvalue())


def test_the_process_opens_nothing():
    code = (
        "import socket; from studio.media import sandbox; sandbox._limit(0)\n"
        "for opens in (lambda: open('/etc/hostname'), lambda: socket.socket()):\n"
        "    try: opens()\n    except OSError as error: print(error.errno)\n"
    )
    import subprocess
    import sys

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["24", "24"]


def test_a_process_that_hangs_or_dies_is_a_media_error(monkeypatch):
    for code in ("import os; os.kill(os.getpid(), 9)", "import time; time.sleep(99)", "print(end='x' * 3)"):
        monkeypatch.setattr(sandbox, "_START", code)
        monkeypatch.setattr(sandbox, "TIME_S", 0.3)
        with pytest.raises(MediaError, match="more memory or time"):
            sandbox.run("decode", bytes(1 << 20), "the video")


def test_a_still_picture_is_a_video_of_one_frame():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (33, 20), (200, 30, 60)).save(buffer, "PNG")
    assert studio.Video.decode(buffer.getvalue() + b"more").frames.shape == (1, 20, 32, 3)


def test_clips_are_decoded_where_studio_is_not_on_the_path(tmp_path):
    """As with an editable install, whose finder the process of its own does not have."""
    rng = np.random.default_rng(0)
    clip = studio.Video(rng.integers(0, 255, (3, 64, 64, 3), np.uint8), fps=8)
    (tmp_path / "clip.mp4").write_bytes(clip.data)
    root = str(Path(studio.__file__).parents[1])
    code = f"""
import sys
sys.path.insert(0, {root!r})
import studio, studio.media
sys.path[:] = [path for path in sys.path if path not in ("", {root!r})]
print(len(studio.Video.open("clip.mp4").frames))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "3\n", ran.stderr
