"""Speech and transcripts by OpenAI's own client, and without a generator for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import studio
from studio.errors import UsageError
from studio.server.catalogue import SPEECH, Catalogue
from tests.studio.server.running_server import RunningServer


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_speech_and_back(client: openai.OpenAI, http: httpx.Client) -> None:
    text = "x" * 100  # a second
    spoken = client.audio.speech.create(model="speaker", voice="low", input=text)  # MP3, as Open WebUI saves it
    assert spoken.response.headers["content-type"] == "audio/mpeg"
    assert spoken.content[:3] == b"ID3" or spoken.content[0] == 0xFF
    made = client.audio.transcriptions.create(model="listener", file=("a.mp3", spoken.content), language="de")
    assert made.text == "de: 1.0 s"
    for form, magic in (("wav", b"RIFF"), ("flac", b"fLaC"), ("opus", b"OggS")):
        assert client.audio.speech.create(
            model="speaker", voice="high", input="x" * 10, response_format=form
        ).content.startswith(magic)
    assert [each["id"] for each in http.get("/v1/audio/voices").json()["voices"]] == ["low", "high"]
    assert [each["id"] for each in http.get("/v1/audio/models").json()["models"]] == ["speaker"]


@pytest.mark.parametrize("file", [b"", b"not a sound", b"RIFF\xff\xff\xff\x7fWAVE" + bytes(20)])
def test_what_is_no_sound_is_refused(http: httpx.Client, file: bytes) -> None:
    answer = http.post("/v1/audio/transcriptions", data={"model": "listener"}, files={"file": ("a.wav", file)})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_an_unknown_voice_is_answered_with_those_that_are_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="low"):
        client.audio.speech.create(model="speaker", voice="alloy", input="x")


def test_without_a_generator_the_answer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as failure:
        Catalogue(studio.Studio(home=tmp_path)).choose(SPEECH, None)
    assert failure.value.message == "no generator makes speech"
    assert "`text`, `voice`" in failure.value.hint
