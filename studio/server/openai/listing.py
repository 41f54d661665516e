"""``/v1/models``: the names that the `model` of other requests can have.

Try it: ``curl http://127.0.0.1:7860/v1/models``
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from studio.errors import UnknownName
from studio.server.catalogue import ALIASES, ROLES
from studio.server.running import apart

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the models: each generator, and with it the downloaded models that it can load."""
    found = await apart(_names, request)
    return {"object": "list", "data": [_entry(request, name) for name in found]}


@router.get("/v1/models/{model:path}")
async def get_model(model: str, request: Request) -> dict[str, Any]:
    """One model, also by a name that stands for another."""
    found = await apart(_names, request)
    if model not in found and model not in ALIASES:
        raise UnknownName("model", model[:100], found)
    return _entry(request, model)


def _names(request: Request) -> list[str]:
    catalogue = request.app.state.server.catalogue
    return list(dict.fromkeys(name for role in ROLES for name in catalogue.names(role)))


def _entry(request: Request, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": request.app.state.server.started, "owned_by": "studio"}
