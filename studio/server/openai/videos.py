"""``/v1/videos``: clips as jobs, which are asked for, polled and downloaded.

Try it: ``curl http://127.0.0.1:7860/v1/videos -F prompt="a dog bouncing" -F seconds=2``
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import FileResponse, JSONResponse

from studio.errors import InputError, UnknownName, UsageError
from studio.jobs import Job, Jobs, JobState
from studio.media import Video
from studio.server.catalogue import CLIP, flags_of
from studio.server.jobs import KEY, add, error_json, spec_of
from studio.server.openai.shape import Body
from studio.server.running import apart, client_of, extras
from studio.server.uploads import UploadForm, decoded_base64, picture, read_form
from studio.spec import JobSpec

FPS = 12  # of clips whose length is given in seconds
POLL_MS = "1000"
_STATUS = {
    JobState.QUEUED: "queued", JobState.PAUSED: "queued", JobState.RUNNING: "in_progress", JobState.DONE: "completed",
    JobState.FAILED: "failed", JobState.CANCELLED: "failed", JobState.QUARANTINED: "failed",
}  # fmt: skip
router = APIRouter()


class VideoBody(Body):
    """A clip to generate."""

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = Field(default=None, max_length=4000)
    seconds: float | None = Field(default=None, gt=0, le=600)
    size: str | None = Field(default=None, max_length=20)
    seed: int | None = None
    fps: float | None = Field(default=None, ge=1, le=60)
    input_reference: Any = None


class RemixBody(BaseModel):
    """Another prompt for the same clip."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str = Field(min_length=1, max_length=32_000)


FORM = UploadForm.schema("prompt", "model", "seconds", "size", "input_reference")


@router.post("/v1/videos", openapi_extra=FORM)
async def create_video(request: Request) -> JSONResponse:
    """Add a job that generates a clip, of `seconds` and `size`, from a prompt and, if given, its first frame."""
    server = request.app.state.server
    body, frame = await _asked(request)
    choice = await apart(server.catalogue.choose, CLIP, body.model)
    inputs: dict[str, Any] = {**extras(choice, body.extra), **choice.values, "prompt": body.prompt}
    if body.size is not None:
        inputs["size"] = body.size
    flags = flags_of(choice.generator)
    if body.seconds is not None:
        fps = body.fps or FPS
        inputs["frames"] = max(1, round(body.seconds * fps))
        if "fps" in flags:
            inputs["fps"] = fps
    if frame is not None:
        image = await picture(frame)
        await apart(server.studio.store.put, image)
        inputs["image"] = image.ref.model_dump()
    fields = {"generator": choice.generator.name, "inputs": inputs, "seed": body.seed}
    spec = await apart(spec_of, server.studio, fields, request.headers.get(KEY), client_of(request))
    return _answer(request, await add(request, spec))


@router.get("/v1/videos")
async def list_videos(
    request: Request,
    limit: int = Query(20, ge=1, le=100),
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List the clips that were asked for, newest first."""
    jobs: list[Job] = await apart(_jobs(request).list, None, None, 1000, after)
    found = [each for each in jobs if _is_clip(request, each)]
    if order == "asc":
        found.reverse()
    shown = [_video(request, each) for each in found[:limit]]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, "has_more": len(found) > limit, **ends}


@router.get("/v1/videos/{id}")
async def get_video(id: str, request: Request) -> JSONResponse:
    """A clip, with how far it is."""
    return _answer(request, await _job(request, id))


@router.get("/v1/videos/{id}/content", response_class=FileResponse)
async def video_content(id: str, request: Request, variant: str = "video") -> FileResponse:
    """The file of a clip that is completed."""
    job = await _job(request, id)
    if variant != "video":
        raise InputError("variant", f"`variant` is `{variant[:40]}`; only `video` is available")
    if job.state is not JobState.DONE:
        raise UsageError(f"the video is {_STATUS[job.state]}", hint="poll it until it is completed")
    (made,) = job.artifacts
    path = await apart(request.app.state.server.studio.store.path, made.sha256)
    if path is None:
        raise UnknownName("artifact", made.sha256, [])
    return FileResponse(path, media_type=made.media_type, filename=f"{id}{path.suffix}")


@router.post("/v1/videos/{id}/remix")
async def remix_video(id: str, body: RemixBody, request: Request) -> JSONResponse:
    """Add a job for the same clip with another prompt."""
    work = (await _job(request, id)).work
    assert isinstance(work, JobSpec)
    changes = {"inputs": {**work.inputs, "prompt": body.prompt}, "client": client_of(request), "destination": None}
    return _answer(request, await add(request, work.model_copy(update=changes)), remix_of=id)


async def _asked(request: Request) -> tuple[VideoBody, bytes | None]:
    """The body, JSON or a form, and the file of the first frame."""
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            body = VideoBody.model_validate_json(await request.body())
            given = body.input_reference
            url = given.get("image_url") if isinstance(given, dict) else given
            return body, decoded_base64("input_reference", url) if isinstance(url, str) else None
        form = await read_form(request, request.app.state.server.limits)
        files = form.all_files("input_reference")
        return VideoBody.of_form(form.values()), files[0] if files else None
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _job(request: Request, id: str) -> Job:
    """The job of a clip. Raises UnknownName for any other."""
    job: Job = await apart(_jobs(request).get, id)
    if not _is_clip(request, job):
        raise UnknownName("video", id[:80], [])
    return job


def _is_clip(request: Request, job: Job) -> bool:
    generators = request.app.state.server.studio.generators
    return isinstance(job.work, JobSpec) and getattr(generators.get(job.work.generator), "output", None) is Video


def _answer(request: Request, job: Job, remix_of: str | None = None) -> JSONResponse:
    return JSONResponse(_video(request, job, remix_of), headers={"openai-poll-after-ms": POLL_MS})


def _video(request: Request, job: Job, remix_of: str | None = None) -> dict[str, Any]:
    """A clip as OpenAI describes it."""
    assert isinstance(job.work, JobSpec)
    inputs, progress = job.work.inputs, job.progress
    frames, fps = inputs.get("frames"), inputs.get("fps")
    length = frames / fps if isinstance(frames, int) and isinstance(fps, int | float) else None
    done = 100 if job.state is JobState.DONE else 0
    if progress is not None and progress.steps and not job.state.ended:
        done = min(99, 100 * progress.position // progress.steps)
    return {
        "id": job.id, "object": "video", "model": job.work.generator, "status": _STATUS[job.state], "progress": done,
        "created_at": int(job.created), "completed_at": int(job.ended) if job.ended else None, "expires_at": None,
        "prompt": inputs.get("prompt"), "size": inputs.get("size") or None, "remixed_from_video_id": remix_of,
        "seconds": f"{length:g}" if length else None, "error": error_json(job.error) if job.error else None,
    }  # fmt: skip


def _jobs(request: Request) -> Jobs:
    found: Jobs = request.app.state.server.jobs
    return found
