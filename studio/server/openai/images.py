"""``/v1/images``: generations, edits and variations.

Try it::

    curl http://127.0.0.1:7860/v1/images/generations -H 'Content-Type: application/json' \\
        -d '{"prompt": "a red apple", "response_format": "b64_json"}'
"""

from __future__ import annotations

import base64
import re
import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.responses import JSONResponse

from studio.errors import InputError, UsageError
from studio.media import Image
from studio.server.catalogue import EDIT, PICTURE, Choice, Role
from studio.server.openai.shape import Body, usage_of
from studio.server.pictures import FORMATS, encoded
from studio.server.running import apart, client_of, extras, results, submit
from studio.server.uploads import UploadForm, picture, read_form

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_UNMARKED = "a picture"  # the prompt of a variation, whose form has none
router = APIRouter()


class ImageBody(Body):
    """Images to generate."""

    prompt: str = Field(max_length=32_000)
    model: str | None = Field(default=None, max_length=4000)
    n: int = Field(default=1, ge=1)
    size: str | None = Field(default=None, max_length=20)
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(default=100, ge=0, le=100)
    quality: str | None = Field(default=None, max_length=40)
    style: str | None = Field(default=None, max_length=40)
    background: str | None = Field(default=None, max_length=40)
    moderation: str | None = Field(default=None, max_length=40)
    user: str | None = None
    seed: int | None = None
    stream: bool = False

    @property
    def as_url(self) -> bool:
        """Whether the answer has URLs: by default for all models but OpenAI's newer ones, whose answers have none."""
        if self.response_format is None:
            return not (self.model or "").startswith("gpt-image")
        return self.response_format == "url"

    def values(self, choice: Choice) -> dict[str, Any]:
        """The inputs of the generator."""
        given: dict[str, Any] = {**extras(choice, self.extra), "prompt": self.prompt, "seed": self.seed}
        if self.seed is not None and self.seed < 0:  # a random one, as other programs write it
            given["seed"] = None
        if self.size is not None:
            if not _SIZE.fullmatch(self.size):
                raise InputError("size", f"`size` is `{self.size}`; it must be WIDTHxHEIGHT in pixels, or `auto`")
            if not choice.takes("size"):
                raise InputError("size", f"`{choice.name}` has no input `size`; leave it out")
            given["size"] = self.size
        return given


@router.post("/v1/images/generations")
async def generations(body: ImageBody, request: Request) -> JSONResponse:
    """Generate images from a prompt."""
    return await _respond(request, body, PICTURE, {})


@router.post("/v1/images/edits", openapi_extra=UploadForm.schema("image", "mask", "prompt", "model", "n", "size"))
async def edits(request: Request) -> JSONResponse:
    """Change an image as a prompt says: all of it, or where `mask` is transparent."""
    form = await read_form(request, request.app.state.server.limits)
    body = _body(form)
    source = await _only_picture(form)
    given: dict[str, Any] = {"image": _opaque(source)}
    if masks := form.all_files("mask"):
        given["mask"] = _mask(await picture(masks[0]), source)
    elif source.mode == "RGBA" and source.pil.getchannel("A").tobytes().strip(b"\xff"):
        given["mask"] = _mask(source, source)
    return await _respond(request, body, EDIT, given)


@router.post("/v1/images/variations", openapi_extra=UploadForm.schema("image", "model", "n", "size"))
async def variations(request: Request) -> JSONResponse:
    """Change an image a little; `prompt` and `strength` can be given, too."""
    form = await read_form(request, request.app.state.server.limits)
    form.texts.setdefault("prompt", [_UNMARKED])
    form.texts.setdefault("strength", ["0.5"])
    return await _respond(request, _body(form), EDIT, {"image": _opaque(await _only_picture(form))})


def _body(form: UploadForm) -> ImageBody:
    try:
        return ImageBody.of_form(form.values())
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _only_picture(form: UploadForm) -> Image:
    found = form.all_files("image")
    if not found:
        raise InputError("image", "`image` is missing: send it as a file")
    if len(found) > 1:
        raise InputError("image", f"`image` has {len(found)} files; the generator takes one")
    return await picture(found[0])


def _opaque(image: Image) -> Image:
    """The image without transparency: the colours that it has there count."""
    return Image(image.pil.convert("RGB")) if image.mode == "RGBA" else image


def _mask(mask: Image, image: Image) -> Image:
    """Studio's mask, white where the image is to be changed: where the given one is transparent or, without
    transparency, white.
    """
    import PIL.ImageOps

    pil = mask.pil
    made = PIL.ImageOps.invert(pil.getchannel("A")) if mask.mode == "RGBA" else pil.convert("L")
    if made.size != image.size:
        message = f"`mask` has {made.width}x{made.height} pixels; it must have the size of `image`"
        raise InputError("mask", message)
    return Image(made)


async def _respond(request: Request, body: ImageBody, role: Role, given: dict[str, Any]) -> JSONResponse:
    """Run the requests and respond."""
    server = request.app.state.server
    if body.n > server.limits.outputs:
        raise InputError("n", f"`n` is {body.n:,}; it must be from 1 to {server.limits.outputs}")
    if body.stream:
        raise UsageError("images are not streamed", hint="leave out `stream`; `/api/jobs` reports progress")
    choice = server.catalogue.choose(role, body.model)
    values = {**body.values(choice), **given, "client": client_of(request)}
    if missing := next((name for name in given if not choice.takes(name)), None):
        raise InputError(missing, f"`{choice.name}` has no input `{missing}`")
    made = await results(request, await submit(server.studio, choice, values, body.n))
    data = [await _item(request, body, each) for each in made if isinstance(each, Image)]
    counts = usage_of(*made)
    usage = {"input_tokens": counts["prompt_tokens"], "output_tokens": 0, "total_tokens": counts["prompt_tokens"],
             "input_tokens_details": {"text_tokens": counts["prompt_tokens"], "image_tokens": 0}}  # fmt: skip
    about = {"output_format": body.output_format, "usage": usage}
    return JSONResponse({"created": int(time.time()), "data": data, **about})


async def _item(request: Request, body: ImageBody, made: Image) -> dict[str, Any]:
    if body.as_url:
        return {"url": str(request.url_for("get_artifact", artifact=made.sha256))}
    data = await apart(encoded, made, FORMATS[body.output_format], body.output_compression)
    return {"b64_json": base64.b64encode(data).decode()}
