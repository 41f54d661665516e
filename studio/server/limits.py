"""Limits of requests: their size, the pace at which they must arrive, and how much one may ask for.

uvicorn limits neither the time in which a request's header arrives nor that of its body, so a sender of one byte every
few seconds could hold a connection for ever. `ImpatientProtocol` closes a connection whose header is late, and
`BodyLimits` answers 408 to a body that is late and 413 to one that is too large. A client that accepts nothing of its
response is cut off, too (by Linux, where it can).

Try it: ``studio serve``, then ``printf 'GET /' | nc 127.0.0.1 7860``: it is closed after 10 s
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from studio.server.errors import Answers, Refusal, refused

_DRAIN_S = 2.0


@dataclass(frozen=True)
class RequestLimits:
    """The limits of one request.

    Attributes:
        body_bytes: of a request's body.
        header_s: seconds until a request's header is complete.
        body_s: seconds until a body is complete, and one more for each `body_rate` bytes received.
        body_rate: bytes per second.
        parts: of a multipart body; of these at most `files` are files.
        files: of a multipart body.
        part_bytes: of a part that is not a file.
        prompt: characters of all text in one request.
        outputs: that one request may ask for.
        held_bytes: of the bodies of all requests that are being answered.
    """

    body_bytes: int = 64 << 20
    header_s: float = 10.0
    body_s: float = 10.0
    body_rate: int = 64 << 10
    parts: int = 64
    files: int = 16
    part_bytes: int = 1 << 20
    prompt: int = 200_000
    outputs: int = 10
    held_bytes: int = 1 << 30


async def drain(receive: Receive) -> None:
    """Read and discard the rest of a request that is refused, for at most `_DRAIN_S`.

    A connection that is closed while data are unread is reset, and the client may lose the response.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass


class BodyLimits:
    """ASGI middleware: bodies must be small enough and arrive in time."""

    def __init__(self, app: ASGIApp, limits: RequestLimits, answers: Answers) -> None:
        self._app, self._limits, self._answers = app, limits, answers
        self._held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            await drain(receive)
            response = self._answers.response(scope["path"], self._too_large().problem)
            await response(scope, receive, send)
            return
        body = _Body(self, receive)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._held -= body.received

    def _too_large(self) -> Refusal:
        message = f"the body is larger than {self._limits.body_bytes >> 20} MiB, the limit"
        return refused(413, "body_too_large", message, close=True)

    def hold(self, more: int, received: int) -> None:
        """Count more bytes of a body of which so many were received. Raises Refusal for too many."""
        self._held += more
        if received > self._limits.body_bytes:
            raise self._too_large()
        if self._held > self._limits.held_bytes:
            raise refused(503, "busy", "too many large requests are being answered; try again later", close=True)

    def left_s(self, since: float, received: int) -> float:
        """The seconds in which more of the body must arrive."""
        return since + self._limits.body_s + received / self._limits.body_rate - time.monotonic()


class _Body:
    """Receives one body."""

    def __init__(self, limits: BodyLimits, receive: Receive) -> None:
        self._limits, self._receive = limits, receive
        self.received, self._since, self._complete = 0, time.monotonic(), False

    async def receive(self) -> Message:
        """The next message. Raises Refusal if the body is late or too large."""
        if self._complete:
            return await self._receive()  # it comes when the client goes away
        try:
            left = max(0.0, self._limits.left_s(self._since, self.received))
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            raise refused(408, "body_too_slow", "the body did not arrive in time", close=True) from None
        if message["type"] == "http.request":
            more = len(message.get("body", b""))
            self.received += more
            self._complete = not message.get("more_body", False)
            try:
                self._limits.hold(more, self.received)
            except Refusal:
                if not self._complete:
                    await drain(self._receive)
                raise
        else:
            self._complete = True
        return message


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which closes a connection whose next request's header is late, or whose client
    accepts no data for `accept_s`.

    Between two requests uvicorn's own keep-alive timeout applies, until the first byte of the next one arrives.
    """

    header_s = RequestLimits.header_s
    accept_s = 60.0

    def connection_made(self, transport: Any) -> None:
        """The client has connected: it has to send a request."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # also for what is still to be sent when the connection is closed
            given = transport.get_extra_info("socket")
            given.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.accept_s * 1000))
        self._deadline: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._relax()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: its header must be complete within the limit after the first of them."""
        if self._deadline is None and self._idle:
            self._expect()
        super().data_received(data)
        if not self._idle:
            self._relax()

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def handle_websocket_upgrade(self, event: Any) -> None:
        """The header is complete; from here on the connection is a websocket's."""
        self._relax()
        super().handle_websocket_upgrade(event)

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(self.header_s, self._close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if self._idle and not self.transport.is_closing():
            self.transport.close()
