"""Uploads are decoded in a process of their own, and nothing in them is trusted."""

from __future__ import annotations

import io

import httpx
import numpy as np
import PIL.Image
import pytest

import studio
from studio.errors import MediaError
from studio.media import pictures, sandbox
from tests.studio.server.running_server import RunningServer, png


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_a_picture_decoded_apart_is_the_same(mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (37, 53, 4), np.uint8)
    image = PIL.Image.fromarray(pixels, "RGBA").convert(mode) if mode != "I;16" else PIL.Image.new(mode, (9, 7), 999)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    whole, apart = studio.Image.decode(buffer.getvalue()), studio.Image.decode_isolated(buffer.getvalue())
    assert (apart, apart.notices) == (whole, whole.notices)


def test_it_is_decoded_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "read", None)  # of this process
    assert studio.Image.decode_isolated(png("RGB", (3, 2), (1, 2, 3))).size == (3, 2)
    monkeypatch.setattr(sandbox, "TIME_S", 0.0)
    with pytest.raises(MediaError, match="more memory or time"):
        studio.Image.decode_isolated(png("RGB", (3, 2), (1, 2, 3)))


def test_an_upload_is_an_input_and_its_recipe_is_not_trusted(server: RunningServer, http: httpx.Client) -> None:
    made = server.studio.generate("plain", prompt="secret", size="8x8", stored=False)
    assert made.recipe is not None
    answer = http.post("/api/artifacts", files={"file": ("../../x.png", made.file_bytes())})
    assert answer.status_code == 201
    found = answer.json()
    assert found == {"sha256": made.sha256, "media_type": "image/png"}
    assert http.get(f"/api/artifacts/{made.sha256}").status_code == 200
    assert http.get(f"/api/artifacts/{made.sha256}/recipe").status_code == 404


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_clips_and_sounds_can_be_uploaded(http: httpx.Client, kind: str) -> None:
    made = (
        studio.Video(np.zeros((2, 8, 8, 3), np.uint8), 4)
        if kind == "video"
        else studio.Audio(np.zeros((1, 480), np.float32), 48000)
    )
    answer = http.post("/api/artifacts", data={"kind": kind}, files={"file": ("a", made.file_bytes())})
    assert answer.json() == made.ref.model_dump(), answer.text
    file = http.get(f"/api/artifacts/{made.sha256}")
    assert file.headers["content-type"] == made.media_type


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        ({}, {"file": b"<svg onload=alert(1)>"}, "the picture is truncated"),
        ({"kind": "model"}, {"file": b"x"}, "no kind of upload is called `model`"),
        ({}, {"other": b"x"}, "`file` must be one file"),
        ({"kind": "video"}, {"file": b"#EXTM3U\nfile:///etc/passwd"}, "the video is"),
    ],
)
def test_what_is_no_media_is_refused(
    http: httpx.Client, data: dict[str, str], files: dict[str, bytes], said: str
) -> None:
    answer = http.post("/api/artifacts", data=data, files=files)
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]
