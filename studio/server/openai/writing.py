"""Writing the texts of a request, and sending them: whole as JSON, or in pieces as server-sent events.

A stream begins when the first request has started, or after `PATIENCE_S`: an error until then has its own status, and a
later one is an event. While nothing is written for `SILENCE_S`, a comment keeps the connection open.

Try it: ``pytest tests/studio/server/test_openai_text.py``
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from studio.api import Studio
from studio.engine import Delta, Event, Failed, Finished, Ticket
from studio.engine.events import CancelledEvent, Loading, Queued
from studio.errors import Cancelled
from studio.media import Media
from studio.server.catalogue import Catalogue, Choice
from studio.server.errors import problem_of
from studio.server.openai.sampling import Explained, SamplingBody
from studio.server.openai.shape import error_body, usage_of
from studio.server.running import client_of, merged, results, submit, while_connected

PATIENCE_S = 5.0
SILENCE_S = 15.0


@dataclass(frozen=True)
class Writing:
    """The texts that a request asks for: `n` for each of `inputs`.

    With `explain` the tokens have log-probabilities, and `top` alternatives. `before` has texts that are put in front.
    """

    choice: Choice
    inputs: Sequence[dict[str, Any]]
    n: int
    explain: bool = False
    top: int = 1
    before: Sequence[str] = field(default_factory=list)

    async def submit(self, studio: Studio, catalogue: Catalogue, client: str, *, stream: bool) -> list[Ticket]:
        """Queue the requests. Raises as `Studio.submit`."""
        choice = catalogue.explained(self.choice) if self.explain else self.choice
        more = {"top": self.top} if self.explain else {}
        options = {"client": client, "stored": False, "stream": stream and not self.explain}
        tickets: list[Ticket] = []
        try:
            for given in self.inputs:
                tickets += await submit(studio, choice, {**given, **more, **options}, self.n)
        except BaseException:
            for each in tickets:
                each.cancel()
            raise
        return tickets

    def text_before(self, index: int) -> str:
        """What is put in front of the text with that index."""
        return self.before[index // self.n] if self.before else ""


class AnswerForm:
    """The JSON of one kind of answer."""

    prefix: ClassVar[str]
    whole: ClassVar[str]
    piece: ClassVar[str]

    def __init__(self, model: str, top: int) -> None:
        """`model` is the name in answers, and `top` the number of alternatives with log-probabilities."""
        self.model, self.top = model, top
        self._head = {"id": self.prefix + secrets.token_urlsafe(16), "created": int(time.time()), "model": model}

    def choice(self, index: int, text: str, reason: str, explained: Explained | None) -> dict[str, Any]:
        """A whole text."""
        raise NotImplementedError

    def delta(
        self, index: int, text: str | None, reason: str | None, explained: Explained | None
    ) -> dict[str, Any] | None:
        """A piece of a text; without text and reason the beginning of it, which may have no form."""
        raise NotImplementedError

    def reason(self, made: Media) -> str:
        """Why a text ended."""
        raise NotImplementedError

    def answer(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The whole answer."""
        return {**self._head, "object": self.whole, "choices": list(choices), "usage": usage}

    def event(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None, *, with_usage: bool) -> str:
        """A server-sent event."""
        more = {"usage": usage} if with_usage else {}
        return _event({**self._head, "object": self.piece, "choices": list(choices), **more})


async def answer(request: Request, writing: Writing, form: AnswerForm, body: SamplingBody) -> Response:
    """Run the requests and respond. Raises their errors."""
    server = request.app.state.server
    tickets = await writing.submit(server.studio, server.catalogue, client_of(request), stream=body.stream)
    if body.stream:
        await _begun(request, tickets)
        stream = _stream(tickets, writing, form, with_usage=body.with_usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
    made = await results(request, tickets)
    choices = []
    for index, each in enumerate(made):
        explained = Explained.read(each, writing.choice.name) if writing.explain else None
        text = writing.text_before(index) + (explained.text if explained else str(each))
        choices.append(form.choice(index, text, form.reason(each), explained))
    return JSONResponse(form.answer(choices, usage_of(*made)))


async def _begun(request: Request, tickets: Sequence[Ticket]) -> None:
    """Wait until the first request has begun, but not for long. Raises its error if it fails before."""

    async def first() -> Event | None:
        async for event in tickets[0].events():
            if not isinstance(event, Queued | Loading):
                return event
        return None

    try:
        async with while_connected(request) as wait:
            began = asyncio.ensure_future(first())
            shielded = asyncio.wait({began}, timeout=PATIENCE_S)  # cancelling it would cancel the request
            await wait(shielded)
            if began.done() and isinstance(event := began.result(), Failed):
                raise event.error
    except BaseException:
        for each in tickets:
            each.cancel()
        raise


async def _stream(
    tickets: Sequence[Ticket], writing: Writing, form: AnswerForm, *, with_usage: bool
) -> AsyncIterator[str]:
    """The events of all texts, in the order in which they are written."""
    made: dict[int, Media] = {}
    try:
        for index in range(len(tickets)):
            if (begin := form.delta(index, None, None, None)) is not None:
                yield form.event([begin], None, with_usage=with_usage)
            if text := writing.text_before(index):
                yield form.event([_some(form.delta(index, text, None, None))], None, with_usage=with_usage)
        async with aclosing(merged(tickets, SILENCE_S)) as events:
            async for found in events:
                if found is None:
                    yield ": waiting\n\n"
                    continue
                for piece in _pieces(*found, writing, form, made):
                    yield form.event([piece], None, with_usage=with_usage)
        if with_usage:
            yield form.event([], usage_of(*made.values()), with_usage=True)
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield _event(error_body(problem_of(error)))
    finally:
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()


def _pieces(
    index: int, event: Event, writing: Writing, form: AnswerForm, made: dict[int, Media]
) -> list[dict[str, Any]]:
    """The pieces of an answer that an event makes. Raises the error of a failed request."""
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, CancelledEvent):
        raise Cancelled("the request was cancelled")
    if isinstance(event, Delta):
        return [_some(form.delta(index, event.text, None, None))] if event.text else []
    if not isinstance(event, Finished):
        return []
    made[index] = event.media
    last = [_some(form.delta(index, "", form.reason(event.media), None))]
    if not writing.explain:
        return last
    explained = Explained.read(event.media, writing.choice.name)
    return [_some(form.delta(index, explained.text, None, explained)), *last]


def _some(piece: dict[str, Any] | None) -> dict[str, Any]:
    assert piece is not None
    return piece


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=True)}\n\n"
