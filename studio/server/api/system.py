"""``/api``: what the server has (generators, models, devices), whether it works, and its metrics.

Try it: ``curl http://127.0.0.1:7860/api/generators``
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse

from studio import models
from studio.api import Studio
from studio.engine.observe.metrics import CONTENT_TYPE
from studio.generator import Generator
from studio.server.running import apart
from studio.versions import libraries

router = APIRouter()


@router.get("/api/health")
async def health() -> dict[str, Any]:
    """Answer if the server can."""
    return {"status": "ok", "version": libraries()["studio"]}


@router.get("/api/generators")
async def list_generators(request: Request) -> dict[str, Any]:
    """List the generators with their kind of output and their required inputs."""
    return {"generators": [_summary(each) for each in _studio(request).generators.values()]}


@router.get("/api/generators/{name}")
async def get_generator(name: str, request: Request) -> JSONResponse:
    """A generator, with the JSON Schema of its inputs and the downloaded models that it can load."""
    found = _studio(request).generator(name)
    fitting = await apart(request.app.state.server.catalogue.models_of, found)
    return JSONResponse({**_summary(found), "inputs": found.Inputs.model_json_schema(), "models": fitting})


@router.get("/api/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the downloaded models."""
    library = models.Models(_studio(request).home)
    entries = await apart(library.entries)
    found = [{"source": name, "state": library.state(models.parse(name)), "revision": each.revision,
              "bytes": sum(pin.bytes for pin in each.files.values())} for name, each in entries.items()]  # fmt: skip
    return {"models": found}


@router.get("/api/devices")
async def list_devices(request: Request) -> dict[str, Any]:
    """List the engines of this data folder: devices, memory, models, and unfinished requests."""
    return {"engines": await apart(_studio(request).running)}


@router.get("/api/metrics")
@router.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """The metrics of the engines, in the text format of Prometheus."""
    return PlainTextResponse(await apart(_studio(request).metrics), media_type=CONTENT_TYPE)


def _studio(request: Request) -> Studio:
    found: Studio = request.app.state.server.studio
    return found


def _summary(generator: Generator) -> dict[str, Any]:
    required = [flag.name for flag in generator.Inputs.flags() if flag.required]
    described = {"name": generator.name, "output": generator.output.kind, "summary": generator.summary}
    return {**described, "required": required}
