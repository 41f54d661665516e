"""``/api/events``: all jobs and their progress in one stream of server-sent events, for pages that show the jobs.

Browsers open only six connections to a server, so a page cannot follow each job by itself. The stream begins with an
event ``jobs``, which has all unfinished and the latest other jobs. Then come ``job`` (a job that is new or changed),
``gone`` (the ids of deleted jobs) and ``progress`` (an event of a running job, with its `job` and `type`). The id of an
event says up to where the events of each running job were sent.

Try it: ``curl -N http://127.0.0.1:7860/api/events``
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import StreamingResponse

from studio.errors import InputError, UnknownName
from studio.jobs import Job, JobEvent, Jobs, JobState
from studio.server.jobs import SILENCE_S, as_json, event_data
from studio.server.running import apart

LATEST = 100  # jobs that are listed whatever their state
MOST_WAITING = 500  # jobs that are listed of each state that has not ended
LOOK_S = 0.5  # how often the list is read, besides when a job's state changes
_CURSOR = re.compile(r"(?:[\w-]{1,64}:\d{1,19}(?:,(?!$)|$)){0,100}")
router = APIRouter()


@router.get("/api/events", response_class=StreamingResponse)
async def follow_jobs(
    request: Request, last_event_id: Annotated[str, Header(max_length=8000)] = ""
) -> StreamingResponse:
    """Follow all jobs. After a lost connection, the header `Last-Event-ID` leaves out what was already sent."""
    if not _CURSOR.fullmatch(last_event_id):
        message = f"`Last-Event-ID` is `{last_event_id[:60]}`, but must be an id of this stream"
        raise InputError("Last-Event-ID", message)
    sent = {job: int(number) for job, _, number in (each.partition(":") for each in last_event_id.split(",") if each)}
    lines = JobsStream(request.app.state.server.jobs, sent).lines()
    return StreamingResponse(lines, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


class JobsStream:
    """One client's stream. `sent` has the number of the last event that was sent of each running job."""

    def __init__(self, jobs: Jobs, sent: dict[str, int]) -> None:
        self._jobs, self._sent = jobs, sent
        self._known: dict[str, Job] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._news: asyncio.Queue[tuple[str, JobEvent]] = asyncio.Queue(64)

    async def lines(self) -> AsyncIterator[str]:
        """The stream, until the client goes away."""
        loop = asyncio.get_running_loop()
        try:
            found = await apart(self._latest)
            yield self._line("jobs", {"jobs": [as_json(each) for each in found.values()]})
            spoken = loop.time()
            while True:
                self._known = found
                await self._follow(found)
                async for line in self._progress():
                    yield line
                    spoken = loop.time()
                found = await apart(self._latest)
                for line in self._changes(found):
                    yield line
                    spoken = loop.time()
                if loop.time() - spoken > SILENCE_S:
                    yield ": waiting\n\n"
                    spoken = loop.time()
        finally:
            await self._follow({})

    def _latest(self) -> dict[str, Job]:
        open_jobs = (JobState.RUNNING, JobState.QUEUED, JobState.PAUSED)
        found = [job for state in open_jobs for job in self._jobs.list(state, limit=MOST_WAITING)]
        return {job.id: job for job in (*found, *self._jobs.list(limit=LATEST))}

    def _changes(self, found: dict[str, Job]) -> list[str]:
        changed = [self._line("job", as_json(job)) for id, job in found.items() if self._known.get(id) != job]
        gone = [id for id in self._known if id not in found]
        return changed + ([self._line("gone", {"jobs": gone})] if gone else [])

    async def _progress(self) -> AsyncIterator[str]:
        """The events of running jobs, until it is time to read the list again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK_S
        while (left := until - loop.time()) > 0:
            try:
                id, event = await asyncio.wait_for(self._news.get(), left)
            except TimeoutError:
                return
            self._sent[id] = event.number
            if event.type == "state":
                return
            yield self._line("progress", {**event_data(event), "job": id, "type": event.type})

    async def _follow(self, found: dict[str, Job]) -> None:
        """Hear the events of the running jobs, and of no others."""
        running = {id for id, job in found.items() if job.state is JobState.RUNNING}
        stopped = [self._following.pop(id) for id in [*self._following] if id not in running]
        for task in stopped:
            task.cancel()
        for task in stopped:
            with suppress(asyncio.CancelledError):
                await task
        self._sent = {id: number for id, number in self._sent.items() if id in running}
        for id in running - self._following.keys():
            self._following[id] = asyncio.ensure_future(self._hear(id))

    async def _hear(self, id: str) -> None:
        with suppress(UnknownName):  # the job was deleted
            async for event in self._jobs.events_async(id, self._sent.get(id, 0)):
                await self._news.put((id, event))

    def _line(self, event: str, data: dict[str, Any]) -> str:
        cursor = ",".join(f"{id}:{number}" for id, number in self._sent.items())
        return f"id: {cursor}\nevent: {event}\ndata: {json.dumps(data)}\n\n"
