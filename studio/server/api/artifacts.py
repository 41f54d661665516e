"""``/api/artifacts``: stored media by id, and uploads.

An id is the hash of the content: no name or path of the client is used. Only pictures, clips, sounds and text are shown
by browsers; anything else is a download.

Try it: ``curl -F file=@apple.png http://127.0.0.1:7860/api/artifacts``
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, JSONResponse, Response

from studio.errors import InputError, UnknownName
from studio.media import Audio, Image, Media, Video
from studio.media.share import shared_file
from studio.server import uploads
from studio.server.running import apart
from studio.server.uploads import UploadForm, read_form
from studio.store.store import KINDS, Output

DECODERS: dict[str, Callable[[bytes], Awaitable[Media]]] = {
    Image.kind: uploads.picture, Video.kind: uploads.clip, Audio.kind: uploads.sound,
}  # fmt: skip
MOST_LISTED = 500
MOST_TITLE = 300  # characters
SHOWN = ("image/png", "video/mp4", "audio/wav", "text/plain")
_ID = re.compile(r"[0-9a-f]{64}")
router = APIRouter()


@router.get("/api/artifacts")
async def list_artifacts(
    request: Request,
    kind: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 60,
    before: Annotated[str | None, Query(pattern="^[0-9]{1,20}-[0-9a-f]{64}$")] = None,
) -> dict[str, Any]:
    """List outputs, the latest first; `before` is the `next` of the page before."""
    if kind is not None and kind not in (kinds := [each.kind for each in KINDS.values()]):
        raise UnknownName("kind of media", kind[:40], kinds)
    store = request.app.state.server.studio.store
    time, _, sha256 = (before or "").partition("-")
    found = await apart(store.outputs, kind, limit, (int(time), sha256) if before else None)
    last = f"{found[-1].time_ns}-{found[-1].sha256}" if len(found) == limit else None
    return {"artifacts": [_described(each) for each in found], "next": last}


@router.get("/api/artifacts/{artifact}", response_class=FileResponse)
async def get_artifact(artifact: str, request: Request) -> Response:
    """The file of an artifact. Ranges can be asked for, and whether it changed since the client has it: it cannot."""
    store = request.app.state.server.studio.store
    path = await apart(store.path, artifact) if _ID.fullmatch(artifact) else None
    if path is None:
        raise UnknownName("artifact", artifact[:80], [])
    kind = KINDS[path.suffix].media_type
    shown = "inline" if kind in SHOWN else "attachment"
    headers = {"ETag": f'"{artifact}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    name = f"{artifact[:16]}{path.suffix}"
    return FileResponse(path, media_type=kind, filename=name, content_disposition_type=shown, headers=headers)


@router.get("/api/artifacts/{artifact}/recipe")
async def get_recipe(artifact: str, request: Request) -> JSONResponse:
    """The recipe of an artifact: how it was generated."""
    store = request.app.state.server.studio.store
    found = await apart(store.recipe, artifact) if _ID.fullmatch(artifact) else None
    if found is None:
        raise UnknownName("recipe of an artifact", artifact[:80], [])
    return JSONResponse(found.model_dump(mode="json", exclude_none=True))


@router.get("/api/artifacts/{artifact}/share", response_class=Response)
async def get_copy(artifact: str, request: Request) -> Response:
    """A copy to share: without recipe, prompt and other metadata, with the AI label."""
    store = request.app.state.server.studio.store
    path = await apart(store.path, artifact) if _ID.fullmatch(artifact) else None
    if path is None:
        raise UnknownName("artifact", artifact[:80], [])
    file, _ = await apart(shared_file, path)
    headers = {"Content-Disposition": f'attachment; filename="{artifact[:16]}{path.suffix}"'}
    return Response(file, media_type=KINDS[path.suffix].media_type, headers=headers)


@router.post("/api/artifacts", status_code=201, openapi_extra=UploadForm.schema("file", "kind"))
async def upload(request: Request) -> dict[str, Any]:
    """Store a file for the inputs of jobs: an image, or what `kind` says. Such an input is given as the answer."""
    form = await read_form(request, request.app.state.server.limits)
    files, kind = form.all_files("file"), str(form.values().get("kind", Image.kind))
    if len(files) != 1:
        raise InputError("file", f"`file` must be one file; there are {len(files)}")
    if kind not in DECODERS:
        raise UnknownName("kind of upload", kind[:40], DECODERS)
    made: Media = await DECODERS[kind](files[0])
    await apart(request.app.state.server.studio.store.put, made)
    return made.ref.model_dump()


def _described(made: Output) -> dict[str, Any]:
    inputs = made.recipe.spec.inputs if made.recipe else {}
    title = next((text for name in ("prompt", "text") if isinstance(text := inputs.get(name), str)), "")
    return {
        "sha256": made.sha256, "media_type": made.media_type, "url": f"/api/artifacts/{made.sha256}",
        "created": made.time_ns / 1e9, "generator": made.recipe.spec.generator if made.recipe else "",
        "title": title[:MOST_TITLE],
    }  # fmt: skip
