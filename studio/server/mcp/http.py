"""MCP over HTTP: ``/mcp`` of ``studio serve`` (streamable HTTP).

The package `mcp` is loaded at the first request. Who may ask is decided before, by the guard of the server.

Try it: ``studio serve``, and give an MCP client the URL ``http://127.0.0.1:7860/mcp``
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from studio.jobs import Jobs

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

PATH = "/mcp"
MOST_SESSIONS = 100
IDLE_S = 600.0  # after which a session that nobody uses ends


class AgentsOverHttp:
    """The ASGI application of ``/mcp``."""

    def __init__(self, jobs: Jobs, body_bytes: int) -> None:
        self._jobs, self._body_bytes = jobs, body_bytes
        self._manager: StreamableHTTPSessionManager | None = None
        self._running: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        async with self._starting:
            if self._manager is None:
                self._manager = await self._start()
        await self._manager.asgi_app(scope, receive, send)

    async def _start(self) -> StreamableHTTPSessionManager:
        """Start what holds the sessions; it runs until the event loop ends."""
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
        from mcp.server.transport_security import TransportSecuritySettings

        from studio.server.mcp.server import Agents

        manager = StreamableHTTPSessionManager(
            Agents(self._jobs.studio, self._jobs, local=False).server,
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the guard's work
            session_idle_timeout=IDLE_S,
            max_sessions=MOST_SESSIONS,
            max_request_body_size=self._body_bytes,
        )
        ready = asyncio.Event()

        async def run() -> None:
            async with manager.run():
                ready.set()
                await asyncio.Event().wait()

        self._running = asyncio.create_task(run())
        await ready.wait()
        return manager


def route(jobs: Jobs, body_bytes: int) -> Route:
    """The route of ``/mcp``; bodies have at most so many bytes. There is no GET, which would open a stream for messages
    without a request: the server has none.
    """
    return Route(PATH, AgentsOverHttp(jobs, body_bytes), methods=["POST", "DELETE"], include_in_schema=False)
