"""Running requests for HTTP clients: in the engine, without blocking the event loop, cancelled when the client goes.

Inputs come from the network, so a text never names a file: media are decoded from the request (see `uploads`), and
models are named only as downloaded ones.

Try it: ``curl http://127.0.0.1:7860/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once"}'``
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from studio import models
from studio.api import Studio
from studio.engine import Event, Ticket
from studio.errors import InputError
from studio.generator import Generator
from studio.media import Media
from studio.server.catalogue import Choice, flags_of
from studio.server.errors import refused
from studio.spec import OPTIONS

T = TypeVar("T")
SEED = "seed"


async def submit(studio: Studio, choice: Choice, values: Mapping[str, Any], n: int = 1) -> list[Ticket]:
    """Queue n requests of a generator with consecutive seeds; `values` are as for `Studio.submit`. Raises as it does,
    and InputError for a path.
    """
    checked_inputs(choice.generator, values)
    given = {**choice.values, **values}

    def call() -> list[Ticket]:
        with models.no_paths_but():
            return studio.submit_many(choice.generator.name, n, **given)

    return await run_in_threadpool(call)


def checked_inputs(generator: Generator, values: Mapping[str, Any]) -> None:
    """Raise InputError if a text is given for media: it would be opened as a path."""
    for name, flag in flags_of(generator).items():
        value = values.get(name)
        many = value if isinstance(value, list | tuple) else [value]
        if flag.type == "media" and any(each is not None and not isinstance(each, Media) for each in many):
            raise InputError(name, f"`{name}` must be uploaded as a file, not given as text")


def extras(choice: Choice, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a request's additional fields those that the generator has as inputs, such as `steps`; others are ignored.

    Media and models cannot be given in this way, nor `None` and ``auto``, which clients send for the default.
    """
    flags = flags_of(choice.generator)
    reference = choice.generator.Inputs.model_ref_in
    taken = {}
    for name, value in given.items():
        known = flags.get(name)
        usable = choice.takes(name) and not (known and known.type == "media") and name not in OPTIONS
        if usable and value is not None and value != "auto" and reference({name: value}) == reference({}):
            taken[name] = value
    return taken


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[Callable[[Any], Any]]:
    """Yield a function that awaits something, and raises Refusal instead if the client goes away meanwhile."""
    gone = asyncio.ensure_future(_gone(request))

    async def wait(what: Any) -> Any:
        task = asyncio.ensure_future(what)
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise refused(499, "client_closed_request", "the client has closed the connection", close=True)
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])
            task.cancelled() or task.exception()  # asyncio logs what nobody has looked at

    try:
        yield wait
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def results(request: Request, tickets: Sequence[Ticket]) -> list[Media]:
    """The outputs of tickets. If one fails, or the client goes away, the others are cancelled. Raises their error."""
    try:
        async with while_connected(request) as wait:
            made: list[Media] = await wait(_all(tickets))
            return made
    finally:
        for each in tickets:
            if not each.done:
                each.cancel()


async def merged(tickets: Sequence[Ticket], silence_s: float | None = None) -> AsyncGenerator[tuple[int, Event] | None]:
    """The events of all tickets with their indices, as they come, until each has ended; None after each `silence_s`
    without one. A slow reader holds up nothing else: a ticket keeps its events for it, within limits.
    """
    news: asyncio.Queue[tuple[int, Event]] = asyncio.Queue(64)

    async def follow(index: int, ticket: Ticket) -> None:
        async for event in ticket.events():
            await news.put((index, event))

    followers = [asyncio.ensure_future(follow(index, each)) for index, each in enumerate(tickets)]
    left = len(tickets)
    try:
        while left:
            try:
                index, event = await asyncio.wait_for(news.get(), silence_s)
            except TimeoutError:
                yield None
                continue
            left -= event.last
            yield index, event
    finally:
        for each in followers:
            each.cancel()


async def _all(tickets: Sequence[Ticket]) -> list[Media]:
    return [await each for each in tickets]


async def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that blocks in a thread."""
    return await run_in_threadpool(partial(function, *arguments))


def client_of(request: Request) -> str:
    """The name under which the engine shares its devices fairly: that of the token."""
    return str(request.state.client)
