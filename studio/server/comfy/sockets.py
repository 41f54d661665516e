"""The websockets of ``/ws``: messages to the clients that sent a prompt, and the length of the queue to all.

A socket gets messages only about prompts of the same access token. One that does not read them is closed.

Try it: ``python -m websockets ws://127.0.0.1:7860/ws?clientId=me``
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

MAX_SOCKETS = 200
SEND_S = 15.0
"""How long a client may take to accept one message."""
_MOST_WAITING, _MOST_BYTES = 500, 128 << 20
_TOO_MANY, _TOO_SLOW = 1013, 1008  # close codes


class Socket:
    """One connection: `client` is the name of its token, `sid` what it calls itself."""

    def __init__(self, socket: WebSocket, client: str, sid: str) -> None:
        self.client, self.sid = client, sid
        self._socket = socket
        self._waiting: asyncio.Queue[str | bytes] = asyncio.Queue(_MOST_WAITING)
        self._bytes = 0
        self.slow = False

    @property
    def waiting(self) -> int:
        """The number of messages that the client has not read."""
        return self._waiting.qsize()

    def send(self, message: str | bytes) -> None:
        """Queue a message; a client that is too far behind is `slow`, and gets no more."""
        if self._waiting.full() or self._bytes > _MOST_BYTES:
            self.slow = True
            return
        self._bytes += len(message)
        self._waiting.put_nowait(message)

    async def serve(self) -> None:
        """Send what is queued until the client goes, or does not read."""
        reading = asyncio.ensure_future(self._read())
        try:
            while True:
                writing = asyncio.ensure_future(self._waiting.get())
                await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
                if not writing.done():
                    writing.cancel()
                    return
                if self.slow:
                    raise TimeoutError
                message = writing.result()
                await asyncio.wait_for(self._send(message), SEND_S)
                self._bytes -= len(message)
        except TimeoutError:
            await self._socket.close(_TOO_SLOW, "messages are not read")
        except WebSocketDisconnect:
            return
        finally:
            reading.cancel()

    async def _send(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            await self._socket.send_bytes(message)
        else:
            await self._socket.send_text(message)

    async def _read(self) -> None:
        """Read and ignore messages of the client, such as its feature flags, until it goes."""
        while (await self._socket.receive())["type"] != "websocket.disconnect":
            pass


class Sockets:
    """All connections. Used in the event loop only."""

    def __init__(self) -> None:
        self._open: list[Socket] = []

    async def serve(self, websocket: WebSocket, sid: str, first: dict[str, Any]) -> None:
        """Serve one connection, whose first message is the `first` status."""
        await websocket.accept()
        if len(self._open) >= MAX_SOCKETS:
            await websocket.close(_TOO_MANY, "too many websockets are open")
            return
        socket = Socket(websocket, str(websocket.state.client), sid)
        self._open.append(socket)
        try:
            socket.send(_message("status", {"status": first, "sid": sid}))
            await socket.serve()
        finally:
            self._open.remove(socket)

    def publish(self, client: str, sid: str, kind: str, data: dict[str, Any]) -> None:
        """Send a message to a client that sent a prompt."""
        for socket in self._of(client, sid):
            socket.send(_message(kind, data))

    def send(self, client: str, sid: str, picture: bytes) -> None:
        """Send a binary message to a client that sent a prompt."""
        for socket in self._of(client, sid):
            socket.send(picture)

    def preview(self, client: str, sid: str, frame: bytes) -> None:
        """Send a preview, a binary message; it is left out for a client that is behind."""
        for socket in self._of(client, sid):
            if socket.waiting <= _MOST_WAITING // 10:
                socket.send(frame)

    def status(self, client: str, status: dict[str, Any]) -> None:
        """Send the length of the queue to all connections of a token."""
        for socket in self._open:
            if socket.client == client:
                socket.send(_message("status", {"status": status}))

    def _of(self, client: str, sid: str) -> Iterator[Socket]:
        return (each for each in self._open if each.client == client and each.sid == sid)


def _message(kind: str, data: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "data": data})
