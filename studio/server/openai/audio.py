"""``/v1/audio``: speech and transcripts, where a plugin has a generator for them.

A generator of speech outputs audio and has the inputs `text` and `voice`; one of transcripts outputs text and has the
input `audio`.

Try it: ``curl http://127.0.0.1:7860/v1/audio/voices``
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from studio.errors import InputError
from studio.media import Audio
from studio.server import uploads
from studio.server.catalogue import SPEECH, TRANSCRIPT, flags_of
from studio.server.openai.shape import Body
from studio.server.running import apart, client_of, extras, results, submit

SPOKEN = {"mp3": "audio/mpeg", "opus": "audio/ogg", "flac": "audio/flac", "wav": "audio/wav"}
router = APIRouter()


class SpeechBody(Body):
    """Text to speak."""

    input: str = Field(min_length=1)
    model: str | None = Field(default=None, max_length=4000)
    voice: str | None = Field(default=None, max_length=200)
    response_format: Literal["mp3", "opus", "flac", "wav"] = "mp3"


class TranscriptBody(Body):
    """How to transcribe a sound."""

    model: str | None = Field(default=None, max_length=4000)
    language: str | None = Field(default=None, max_length=40)
    response_format: Literal["json", "text"] = "json"


@router.post("/v1/audio/speech", response_class=Response)
async def speech(body: SpeechBody, request: Request) -> Response:
    """Speak a text: MP3, or what `response_format` says."""
    server = request.app.state.server
    if len(body.input) > server.limits.prompt:
        message = f"`input` has {len(body.input):,} characters; the limit is {server.limits.prompt:,}"
        raise InputError("input", message)
    choice = server.catalogue.choose(SPEECH, body.model)
    values = {**extras(choice, body.extra), "text": body.input, "client": client_of(request)}
    if body.voice is not None:
        values["voice"] = body.voice
    (made,) = await results(request, await submit(server.studio, choice, values))
    assert isinstance(made, Audio)
    return Response(await apart(made.encoded, f".{body.response_format}"), media_type=SPOKEN[body.response_format])


@router.get("/v1/audio/voices")
async def voices(request: Request) -> dict[str, Any]:
    """The voices of all models."""
    choices = request.app.state.server.catalogue.choices(SPEECH)
    found = dict.fromkeys(str(name) for each in choices for name in flags_of(each.generator)["voice"].choices)
    return {"voices": [{"id": name, "name": name} for name in found]}


@router.get("/v1/audio/models")
async def speech_models(request: Request) -> dict[str, Any]:
    """The models that speak."""
    return {"models": [{"id": name} for name in await apart(request.app.state.server.catalogue.names, SPEECH)]}


@router.post(
    "/v1/audio/transcriptions", openapi_extra=uploads.UploadForm.schema("file", "model"), response_class=JSONResponse
)
async def transcriptions(request: Request) -> Response:
    """Transcribe a sound."""
    server = request.app.state.server
    form = await uploads.read_form(request, server.limits)
    try:
        body = TranscriptBody.of_form(form.values())
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    files = form.all_files("file")
    if len(files) != 1:
        raise InputError("file", f"`file` must be one sound; there are {len(files)}")
    choice = server.catalogue.choose(TRANSCRIPT, body.model)
    values = {**extras(choice, body.extra), "client": client_of(request), "stored": False}
    if body.language is not None and choice.takes("language"):
        values["language"] = body.language
    values["audio"] = await uploads.sound(files[0])
    (made,) = await results(request, await submit(server.studio, choice, values))
    return PlainTextResponse(str(made)) if body.response_format == "text" else JSONResponse({"text": str(made)})
