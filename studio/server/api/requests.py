"""``/api/requests``: the requests of the user's own commands, which run here as they would in the command.

Only the secret in ``server.json`` opens it: these requests may name models by path. The response has a line of JSON for
each event of each request, as it happens; when the client closes the connection, what has not ended is cancelled.
`studio.remote` is the client.

Try it: ``studio serve``, then ``studio image "a red apple"`` in another terminal
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, StreamingResponse

from studio.api import MAX_AT_ONCE, Studio
from studio.engine import Ticket
from studio.errors import StudioError
from studio.remote import PATH
from studio.server.errors import refused
from studio.server.running import apart, merged
from studio.spec import JobSpec
from studio.versions import libraries


def only_owner(request: Request) -> None:
    """Raise Refusal unless the request has the secret of ``server.json``."""
    if not request.state.owner:
        raise refused(403, "not_the_owner", "only the commands of the user who started the server may ask this")


router = APIRouter(dependencies=[Depends(only_owner)])


class Batch(BaseModel):
    """Requests that are submitted together, to any device or to the one named."""

    model_config = ConfigDict(extra="forbid")

    requests: Annotated[list[JobSpec], Field(min_length=1, max_length=MAX_AT_ONCE)]
    device: Annotated[str | None, Field(max_length=50)] = None


class Cancellation(BaseModel):
    """Which request of a batch to cancel."""

    model_config = ConfigDict(extra="forbid")

    index: Annotated[int, Field(ge=0, lt=MAX_AT_ONCE)]


@router.get(PATH)
async def describe(request: Request) -> dict[str, Any]:
    """What a command must know before it sends requests: the version, and the devices."""
    devices = await apart(lambda: request.app.state.server.studio.router.devices)
    return {"version": libraries()["studio"], "devices": list(devices)}


@router.post(PATH, response_model=None)
async def run(batch: Batch, request: Request) -> JSONResponse | StreamingResponse:
    """Run requests; each line of the response has an event and the index of its request."""
    server = request.app.state.server
    try:
        tickets = await apart(_submit, server.studio, batch)
    except StudioError as error:
        return JSONResponse({"error": error.to_json()})
    name = secrets.token_urlsafe(16)
    server.batches[name] = tickets

    async def lines() -> AsyncIterator[str]:
        try:
            yield json.dumps({"batch": name}) + "\n"
            async with aclosing(merged(tickets)) as events:
                async for found in events:
                    if found is not None:
                        yield f'{{"index": {found[0]}, "event": {found[1].to_json()}}}\n'
        finally:
            server.batches.pop(name, None)
            for ticket in tickets:
                if not ticket.done:
                    ticket.cancel()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post(PATH + "/{name}/cancel")
async def cancel(name: str, what: Cancellation, request: Request) -> dict[str, Any]:
    """Cancel one request of a batch; nothing happens if it has ended."""
    tickets = request.app.state.server.batches.get(name, [])
    if what.index < len(tickets):
        tickets[what.index].cancel()
    return {}


def _submit(studio: Studio, batch: Batch) -> list[Ticket]:
    requests = [studio.requests.of_spec(each) for each in batch.requests]
    return studio.router.submit_many(requests, batch.device)
