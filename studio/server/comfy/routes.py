"""The routes that take graphs and pictures, and report what became of them. Each is there below ``/api``, too.

Try it: ``curl http://127.0.0.1:7860/queue``
"""

from __future__ import annotations

import json
import secrets
from typing import Any, TypeVar

from fastapi import APIRouter, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import FileResponse, JSONResponse, Response

from studio import models
from studio.errors import InputError, UnknownName, UsageError
from studio.loaders.adapters import changes_text_encoder
from studio.media import Image
from studio.server.comfy.compile import Compiled, compile_graph
from studio.server.comfy.describe import SAMPLED, names
from studio.server.comfy.graph import GraphNode, PromptBody, PromptRefused, parse
from studio.server.comfy.prompts import Prompts, QueuedPrompt
from studio.server.comfy.scene import Scene, file_name, stored_picture
from studio.server.pictures import FORMATS, encoded
from studio.server.running import apart, client_of
from studio.server.uploads import UploadForm, picture, read_form

BodyT = TypeVar("BodyT", bound=BaseModel)
UNTYPED = tuple(f"{api}/{name}" for api in ("", "/api") for name in ("prompt", "queue", "history", "interrupt"))
"""Paths to which scripts post JSON without saying so: Python's urllib and JavaScript's fetch name other types."""
PREFIXES = (
    *UNTYPED,
    *(f"{api}/{name}" for api in ("", "/api")
      for name in ("view", "upload/", "object_info", "system_stats", "embeddings", "extensions", "ws")), "/models",
)  # fmt: skip
"""What the paths of this interface begin with."""
router = APIRouter()
FOLDERS = ("input", "output", "temp")


class _Change(BaseModel):
    """The body of ``POST /queue`` and ``/history``."""

    model_config = ConfigDict(frozen=True)

    clear: bool = False
    delete: list[str] = Field(default_factory=list, max_length=10_000)


class _Interrupt(BaseModel):
    """The body of ``POST /interrupt``, if it has one."""

    model_config = ConfigDict(frozen=True)

    prompt_id: str | None = Field(default=None, max_length=200)


def _json(model: type[BaseModel]) -> dict[str, Any]:
    """A route's body in OpenAPI's description."""
    schema = {"schema": model.model_json_schema()}
    return {"requestBody": {"content": {"application/json": schema}, "required": True}}


async def _body(request: Request, model: type[BodyT]) -> BodyT:
    """The JSON of a request, whatever its Content-Type says; without any, an empty object."""
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


@router.post("/prompt", openapi_extra=_json(PromptBody))
@router.post("/api/prompt", openapi_extra=_json(PromptBody))
async def post_prompt(request: Request) -> JSONResponse:
    """Accept a graph, and run it. An equal graph with the same `prompt_id` is accepted once."""
    body = await _body(request, PromptBody)
    server, client = request.app.state.server, client_of(request)
    prompts: Prompts = server.prompts
    id = body.prompt_id or secrets.token_hex(16)
    known = prompts.find(client, id)
    if known is not None and known.graph != body.prompt:
        raise UsageError(f"the prompt_id `{id}` has another graph", hint="choose another, or leave it out")
    try:
        if known is None:
            compiled = await apart(_compiled, server, parse(body.prompt))
            known = prompts.find(client, id)
            made = QueuedPrompt(id, client, body.client_id or "", body.prompt, compiled, body.front)
            known = known or await prompts.add(made)
    except PromptRefused as refused:
        return JSONResponse(refused.to_json(), 400)
    return JSONResponse({"prompt_id": id, "number": known.number, "node_errors": {}})


def _compiled(server: Any, graph: dict[str, GraphNode]) -> Compiled:
    studio, lists = server.studio, names(server.catalogue)

    def changes_text(name: str) -> bool:
        with models.home(studio.home), models.no_paths_but():
            return changes_text_encoder(models.path(name))

    find = server.catalogue.choose
    scene = Scene(lists, lambda name: find(SAMPLED, name), studio.store, changes_text, server.limits.outputs)
    return compile_graph(graph, scene)


@router.get("/prompt")
@router.get("/api/prompt")
async def get_prompt(request: Request) -> dict[str, Any]:
    """The number of prompts that have not ended."""
    found: dict[str, Any] = request.app.state.server.prompts.status(client_of(request))
    return found


@router.get("/queue")
@router.get("/api/queue")
async def get_queue(request: Request) -> dict[str, Any]:
    """The prompts that have not ended."""
    waiting = request.app.state.server.prompts.of(client_of(request), ended=False)
    return {
        "queue_running": [each.in_queue() for each in waiting if each.state == "running"],
        "queue_pending": [each.in_queue() for each in waiting if each.state == "pending"],
    }


@router.post("/queue", openapi_extra=_json(_Change))
@router.post("/api/queue", openapi_extra=_json(_Change))
async def post_queue(request: Request) -> Response:
    """Remove prompts that are not running from the queue."""
    return await _changed(request, ended=False)


@router.get("/history")
@router.get("/api/history")
async def get_history(request: Request, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
    """The prompts that have ended, oldest first; the latest `max_items`, or those from `offset`."""
    ended = request.app.state.server.prompts.of(client_of(request), ended=True)
    if max_items is not None:
        first = max(0, len(ended) - max_items) if offset < 0 else offset
        ended = ended[first : first + max(0, max_items)]
    return {each.id: each.in_history() for each in ended}


@router.post("/history", openapi_extra=_json(_Change))
@router.post("/api/history", openapi_extra=_json(_Change))
async def post_history(request: Request) -> Response:
    """Remove prompts from the history; their pictures stay."""
    return await _changed(request, ended=True)


@router.get("/history/{id}")
@router.get("/api/history/{id}")
async def get_history_of(id: str, request: Request) -> dict[str, Any]:
    """One prompt, if it has ended; else an empty object."""
    found = request.app.state.server.prompts.find(client_of(request), id)
    return {id: found.in_history()} if found is not None and found.ended else {}


async def _changed(request: Request, *, ended: bool) -> Response:
    body = await _body(request, _Change)
    prompts: Prompts = request.app.state.server.prompts
    if body.clear or body.delete:
        await prompts.delete(client_of(request), None if body.clear else body.delete, ended=ended)
    return Response()


@router.post("/interrupt")
@router.post("/api/interrupt")
async def interrupt(request: Request) -> Response:
    """Cancel the running prompt: that with the `prompt_id`, or the oldest."""
    body = await _body(request, _Interrupt)
    await request.app.state.server.prompts.interrupt(client_of(request), body.prompt_id)
    return Response()


@router.get("/view")
@router.get("/api/view")
async def view(request: Request, filename: str, preview: str = "") -> Response:
    """A picture by the name that an upload or the history gave; with `preview` as ``webp;90`` or ``jpeg;90``."""
    path = await apart(stored_picture, request.app.state.server.studio.store, filename)
    if path is None:
        raise UnknownName("file", filename[:80], [])
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    form, _, quality = preview.partition(";")
    if form not in FORMATS:
        return FileResponse(path, media_type="image/png", headers=headers)
    data = await apart(_converted, path, FORMATS[form], int(quality[:3]) if quality.isdecimal() else 90)
    return Response(data, media_type=f"image/{form}", headers=headers)


def _converted(path: Any, form: str, quality: int) -> bytes:
    return encoded(Image.open(path), form, min(100, quality))


@router.post("/upload/image", openapi_extra=UploadForm.schema("image", "type", "subfolder", "overwrite"))
@router.post("/api/upload/image", openapi_extra=UploadForm.schema("image", "type", "subfolder", "overwrite"))
async def upload_image(request: Request) -> dict[str, str]:
    """Store a picture for LoadImage, which names it as the answer does."""
    form = await read_form(request, request.app.state.server.limits)
    return await _stored(request, form, await _only(form))


@router.post("/upload/mask", openapi_extra=UploadForm.schema("image", "original_ref", "type", "subfolder"))
@router.post("/api/upload/mask", openapi_extra=UploadForm.schema("image", "original_ref", "type", "subfolder"))
async def upload_mask(request: Request) -> dict[str, str]:
    """Store a picture that was uploaded before, with the transparency of another."""
    server = request.app.state.server
    form = await read_form(request, server.limits)
    mask = await _only(form)
    try:
        named = json.loads((form.texts.get("original_ref") or ["{}"])[0])
        name = str(named["filename"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError("original_ref", "`original_ref` must be JSON with a `filename`") from None
    path = await apart(stored_picture, server.studio.store, name)
    if path is None:
        raise UnknownName("file", name[:80], [])
    return await _stored(request, form, await apart(_masked, path, mask))


def _masked(path: Any, mask: Image) -> Image:
    pil, alpha = Image.open(path).pil.convert("RGB"), mask.pil.convert("RGBA").getchannel("A")
    if alpha.size != pil.size:
        message = f"the mask has {alpha.width}x{alpha.height} pixels; the picture has {pil.width}x{pil.height}"
        raise InputError("image", message)
    pil.putalpha(alpha)
    return Image(pil)


async def _only(form: UploadForm) -> Image:
    files = form.all_files("image")
    if len(files) != 1:
        raise InputError("image", f"`image` must be one file; there are {len(files)}")
    return await picture(files[0])


async def _stored(request: Request, form: UploadForm, image: Image) -> dict[str, str]:
    folder = (form.texts.get("type") or ["input"])[0]
    if folder not in FOLDERS:
        raise UnknownName("type of upload", folder[:40], FOLDERS)
    await apart(request.app.state.server.studio.store.put, image)
    return {"name": file_name(image.sha256), "subfolder": "", "type": folder}


@router.websocket("/ws")
@router.websocket("/api/ws")
async def messages(websocket: WebSocket) -> None:
    """The messages about the prompts that have the `clientId` of the connection as `client_id`."""
    prompts: Prompts = websocket.app.state.server.prompts
    sid = websocket.query_params.get("clientId", "")[:200] or secrets.token_hex(16)
    await prompts.sockets.serve(websocket, sid, prompts.status(str(websocket.state.client)))
