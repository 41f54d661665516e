"""Jobs as clients may see and add them: without paths of this machine, and with models by name.

Try it: ``curl http://127.0.0.1:7860/api/jobs``
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from fastapi import Request

from studio import models
from studio.api import Studio
from studio.errors import InputError, StudioError, UnknownName
from studio.jobs import Job, JobEvent, Jobs
from studio.jobs.job import JobError, WorkflowWork, seed_of
from studio.server.errors import HttpProblem, problem_of
from studio.server.running import apart
from studio.spec import JobSpec

KEY = "Idempotency-Key"
SILENCE_S = 15.0
_OPTIONS = ("seed", "dtype", "invariant", "priority", "time_limit_s", "preview_every", "stream", "label")


def spec_of(studio: Studio, fields: Mapping[str, Any], key: str | None, client: str) -> JobSpec:
    """A JobSpec of a client's fields: `generator`, `inputs` and options. Media are given by hash, and models by name.
    Without a seed one is derived from the idempotency key, or random. Raises as `Studio.submit`.
    """
    options = {name: fields[name] for name in _OPTIONS if fields.get(name) is not None}
    options.setdefault("seed", secrets.randbits(32) if key is None else seed_of(key))
    check_media(studio, fields["inputs"])
    spec = JobSpec.check({"generator": fields["generator"], "inputs": fields["inputs"], "client": client, **options})
    with models.no_paths_but():
        return studio.request(spec).spec


async def add(request: Request, spec: JobSpec | WorkflowWork) -> Job:
    """Accept a job, once for each idempotency key. Raises as `Jobs.add`."""
    jobs: Jobs = request.app.state.server.jobs
    key = request.headers.get(KEY)

    def call() -> Job:
        check_media(jobs.studio, spec.inputs)
        with models.no_paths_but():
            return jobs.add(spec, key=key)

    return await apart(call)


def as_json(job: Job) -> dict[str, Any]:
    """A job for clients."""
    found = job.model_dump(mode="json", exclude={"work": {"destination", "file"}, "crashes": True})
    found["artifacts"] = [_artifact(each) for each in found["artifacts"]]
    found["error"] = None if job.error is None else error_json(job.error)
    return found


def error_json(error: JobError) -> dict[str, str]:
    """Why a job failed, without paths of this machine."""
    problem = _problem_of(error.title, error.message, error.hint)
    return {"code": problem.code, "message": problem.message}


@lru_cache(1000)
def _problem_of(title: str, message: str, hint: str | None) -> HttpProblem:
    """The problem of a job's error: the log has it once, however often the job is asked for."""
    try:
        return problem_of(StudioError.from_json({"type": title, "message": message, "hint": hint}))
    except InputError:  # a class that has no JSON form
        return problem_of(StudioError(message))


async def event_lines(jobs: Jobs, id: str, after: int) -> AsyncIterator[str]:
    """The events of a job as server-sent events, with a comment after each 15 s of silence."""
    news: asyncio.Queue[JobEvent | Exception | None] = asyncio.Queue(64)

    async def follow() -> None:
        try:
            async for event in jobs.events_async(id, after):
                await news.put(event)
            await news.put(None)
        except Exception as error:
            await news.put(error)

    following = asyncio.ensure_future(follow())
    try:
        while True:
            try:
                event = await asyncio.wait_for(news.get(), SILENCE_S)
            except TimeoutError:
                yield ": waiting\n\n"
                continue
            if event is None or isinstance(event, UnknownName):  # the job has ended, or was deleted
                return
            if isinstance(event, Exception):
                raise event
            yield f"id: {event.number}\nevent: {event.type}\ndata: {json.dumps(event_data(event))}\n\n"
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


def event_data(event: JobEvent) -> dict[str, Any]:
    """The fields of an event, without paths of this machine."""
    data = dict(event.data)
    if isinstance(error := data.get("error"), dict):
        title, message = str(error.get("type", error.get("title", ""))), str(error.get("message", ""))
        data["error"] = error_json(JobError(title=title, message=message, hint=error.get("hint")))
    if isinstance(made := data.get("artifacts"), list):
        data["artifacts"] = [_artifact(each) for each in made]
    return data


def _artifact(made: Mapping[str, Any]) -> dict[str, Any]:
    """An output, with the path of its URL instead of its file's."""
    known = {name: made[name] for name in ("sha256", "media_type", "name")}
    return {**known, "url": f"/api/artifacts/{made['sha256']}"}


def check_media(studio: Studio, value: Any) -> None:
    """Raise UnknownName for a reference to media, anywhere in a JSON value, that are not in the store."""
    if isinstance(value, dict) and isinstance(sha256 := value.get("sha256"), str):
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or studio.store.path(sha256) is None:
            raise UnknownName("artifact", sha256[:80], [])
        return
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_media(studio, each)
