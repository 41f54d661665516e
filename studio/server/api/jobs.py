"""``/api/jobs``: jobs that outlive the server, and their events.

Try it::

    curl http://127.0.0.1:7860/api/jobs -H 'Content-Type: application/json' \\
        -d '{"generator": "image", "inputs": {"prompt": "a red apple"}}'
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from starlette.responses import StreamingResponse

from studio.errors import InputError
from studio.jobs import Job, Jobs, JobState
from studio.jobs.job import WorkflowWork
from studio.server.jobs import add, as_json, event_lines, spec_of
from studio.server.running import apart, client_of
from studio.spec import MAX_SEED, Priority

MOST_LISTED = 1000
router = APIRouter()


class JobBody(BaseModel):
    """A job: a generator or a workflow (its YAML text), with its inputs. Media are ``{"sha256", "media_type"}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    generator: str | None = Field(default=None, max_length=200)
    workflow: str | None = Field(default=None, max_length=1 << 20)
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    priority: Priority = "interactive"
    time_limit_s: float | None = Field(default=None, gt=0)
    preview_every: int = Field(default=0, ge=0)
    dtype: str | None = Field(default=None, max_length=50)
    invariant: bool = False
    stream: bool = False
    label: str = Field(default="", max_length=1000)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.generator is None) == (self.workflow is None):
            raise ValueError("give either `generator` or `workflow`")
        return self


class MoveBody(BaseModel):
    """Where to move a job: to the front of the queue, or before another job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: bool = False
    before: str | None = Field(default=None, max_length=100)


@router.post("/api/jobs", status_code=201)
async def add_job(
    body: JobBody, request: Request, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> dict[str, Any]:
    """Add a job. With the header `Idempotency-Key`, repeating the request adds no second job."""
    server, client = request.app.state.server, client_of(request)
    if body.workflow is not None:
        work = WorkflowWork(
            document=body.workflow, inputs=body.inputs, seed=body.seed or 0, client=client, priority=body.priority,
            time_limit_s=body.time_limit_s,
        )  # fmt: skip
        return as_json(await add(request, work))
    fields = body.model_dump(exclude={"workflow"})
    return as_json(await add(request, await apart(spec_of, server.studio, fields, idempotency_key, client)))


@router.get("/api/jobs")
async def list_jobs(
    request: Request,
    state: JobState | None = None,
    client: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 100,
    after: str | None = None,
) -> dict[str, Any]:
    """List jobs, newest first; `after` is the last id of the page before."""
    found: list[Job] = await apart(_jobs(request).list, state, client, limit, after)
    return {"jobs": [as_json(each) for each in found]}


@router.get("/api/jobs/{id}")
async def get_job(id: str, request: Request) -> dict[str, Any]:
    """A job as it is now."""
    return as_json(await apart(_jobs(request).get, id))


@router.get("/api/jobs/{id}/events", response_class=StreamingResponse)
async def job_events(
    id: str,
    request: Request,
    after: Annotated[int, Query(ge=0)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> StreamingResponse:
    """The events of a job as server-sent events, until it has ended. After a lost connection they go on from the header
    `Last-Event-ID`, which browsers send by themselves, or from `after`.
    """
    if last_event_id is not None:
        if not last_event_id.isdecimal():
            raise InputError("Last-Event-ID", f"`Last-Event-ID` is `{last_event_id}`, but must be a number")
        after = int(last_event_id)
    await apart(_jobs(request).get, id)
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(event_lines(_jobs(request), id, after), media_type="text/event-stream", headers=headers)


@router.post("/api/jobs/{id}/cancel")
async def cancel_job(id: str, request: Request) -> dict[str, Any]:
    """Cancel a job; a running one ends within a step."""
    return as_json(await apart(_jobs(request).cancel, id))


@router.post("/api/jobs/{id}/pause")
async def pause_job(id: str, request: Request) -> dict[str, Any]:
    """Pause a job: its state is saved, and its memory is freed."""
    return as_json(await apart(_jobs(request).pause, id))


@router.post("/api/jobs/{id}/resume")
async def resume_job(id: str, request: Request) -> dict[str, Any]:
    """Queue a paused job again."""
    return as_json(await apart(_jobs(request).resume, id))


@router.post("/api/jobs/{id}/retry")
async def retry_job(id: str, request: Request) -> dict[str, Any]:
    """Queue a job again that failed or was cancelled."""
    return as_json(await apart(_jobs(request).retry, id))


@router.post("/api/jobs/{id}/move")
async def move_job(id: str, body: MoveBody, request: Request) -> dict[str, Any]:
    """Move a waiting job in the queue."""
    jobs = _jobs(request)
    return as_json(await apart(lambda: jobs.move(id, first=body.first, before=body.before)))


def _jobs(request: Request) -> Jobs:
    found: Jobs = request.app.state.server.jobs
    return found
