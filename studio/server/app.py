"""The application: all routes of all interfaces behind one guard.

Nothing is reached around `Security`: it stands outside FastAPI, so that a route, a missing page and an error are
refused alike. Then come the limits of bodies, then the routes.

Try it: ``uvicorn`` needs the settings of `serve`; use ``studio serve``
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from studio.api import Studio
from studio.caching import cached_property
from studio.engine import Ticket
from studio.errors import StudioError
from studio.jobs import Jobs
from studio.server.api import artifacts, events, jobs, requests, system
from studio.server.catalogue import Catalogue
from studio.server.comfy import describe as comfy_describe
from studio.server.comfy import graph as comfy_graph
from studio.server.comfy import routes as comfy_routes
from studio.server.comfy.prompts import Prompts
from studio.server.errors import Answers
from studio.server.limits import BodyLimits, RequestLimits
from studio.server.mcp import http as mcp
from studio.server.openai import audio, chat, completions, embeddings, images, listing, videos
from studio.server.openai.shape import error_body
from studio.server.sdapi import drawing, settings
from studio.server.sdapi.shape import WebuiState
from studio.server.sdapi.shape import error_body as webui_error_body
from studio.server.security import Access, Security
from studio.server.web import routes as web
from studio.versions import libraries

ROUTERS = tuple(
    each.router for each in (
        artifacts, events, jobs, requests, system, listing, chat, completions, embeddings, images, audio, videos,
        drawing, settings, comfy_describe, comfy_routes, web,
    )
)  # fmt: skip
ANSWERS = Answers({
    "/v1": error_body, "/sdapi": webui_error_body, **dict.fromkeys(comfy_routes.PREFIXES, comfy_graph.error_body),
})  # fmt: skip


@dataclass(frozen=True)
class Server:
    """What the routes work with; they find it as ``request.app.state.server``."""

    studio: Studio
    jobs: Jobs
    limits: RequestLimits
    batches: dict[str, list[Ticket]] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time.time()))
    webui: WebuiState = field(default_factory=WebuiState)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The generators as clients name them."""
        return Catalogue(self.studio)

    @cached_property
    def prompts(self) -> Prompts:
        """The queue and the history of ComfyUI's clients."""
        return Prompts(self.jobs)


def create_app(jobs: Jobs, access: Access, limits: RequestLimits | None = None) -> ASGIApp:
    """The ASGI application that serves jobs and their Studio. Starting and closing both is left to the caller."""
    limits = limits or RequestLimits()
    inside = BodyLimits(routes(jobs, limits), limits, ANSWERS)
    return Security(inside, access, ANSWERS, comfy_routes.UNTYPED, web.is_public)


def routes(jobs: Jobs, limits: RequestLimits) -> FastAPI:
    """The routes without the guard, for `create_app` and for listing them."""
    app = FastAPI(
        title="Studio",
        version=libraries()["studio"],
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = Server(jobs.studio, jobs, limits)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(mcp.route(jobs, limits.body_bytes))
    for kind in (StudioError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, ANSWERS.handle)
    return app
