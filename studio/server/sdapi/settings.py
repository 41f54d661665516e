"""``/sdapi/v1``: options, lists of names, progress and interruption.

Try it: ``curl http://127.0.0.1:7860/sdapi/v1/progress``
"""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from studio.server.catalogue import PICTURE
from studio.server.running import apart, client_of
from studio.server.sdapi.shape import AUTOMATIC, WebuiRun, samplers_of

router = APIRouter()


class OptionsBody(BaseModel):
    """Options to set. Only the model is used."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: str | None = Field(default=None, max_length=4000)


@router.get("/sdapi/v1/options")
async def get_options(request: Request) -> dict[str, Any]:
    """The chosen model."""
    server = request.app.state.server
    chosen = server.catalogue.choose(PICTURE, server.webui.model)
    return {
        "sd_model_checkpoint": chosen.name,
        "samples_format": "png",
        "sd_vae": AUTOMATIC,
        "CLIP_stop_at_last_layers": 1,
    }


@router.post("/sdapi/v1/options")
async def set_options(body: OptionsBody, request: Request) -> None:
    """Choose the model for requests that name none."""
    server = request.app.state.server
    if body.sd_model_checkpoint is not None:
        server.webui.model = server.catalogue.choose(PICTURE, body.sd_model_checkpoint).name


@router.get("/sdapi/v1/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """The models."""
    names = await apart(request.app.state.server.catalogue.names, PICTURE)
    unknown = {"hash": None, "sha256": None, "config": None}
    return [{"title": name, "model_name": name, "filename": name, **unknown} for name in names]


@router.get("/sdapi/v1/samplers")
async def samplers(request: Request) -> list[dict[str, Any]]:
    """The samplers of the chosen model."""
    server = request.app.state.server
    found = samplers_of(server.catalogue.choose(PICTURE, server.webui.model))
    return [{"name": name, "aliases": [own], "options": {}} for name, own in found.items()]


@router.get("/sdapi/v1/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The noise schedules: that of the model."""
    more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": AUTOMATIC.lower(), "label": AUTOMATIC, **more}]


@router.get("/sdapi/v1/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    """The upscalers: none."""
    return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1.0}]


@router.get("/sdapi/v1/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, Any]]:
    """The ways to enlarge latents: none."""
    return [{"name": "None"}]


@router.get("/sdapi/v1/sd-vae")
@router.get("/sdapi/v1/sd-modules")
async def vaes() -> list[dict[str, Any]]:
    """The VAEs that can be chosen apart from a model: none."""
    return []


@router.get("/sdapi/v1/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the oldest of the client's running requests is, with a preview."""
    runs: list[WebuiRun] = request.app.state.server.webui.of(client_of(request))
    run = runs[0] if runs else None
    step = run.step if run else None
    preview = run.preview if run and not skip_current_image else None
    state = {"skipped": False, "interrupted": False, "job": "txt2img" if run else "", "job_timestamp": "0",
             "job_count": sum(len(each.tickets) for each in runs), "job_no": run.done if run else 0,
             "sampling_step": step.position if step else 0, "sampling_steps": step.steps if step else 0}  # fmt: skip
    return {
        "progress": run.fraction if run else 0.0,
        "eta_relative": step.eta_s if step else 0.0,
        "state": state,
        "current_image": base64.b64encode(await apart(preview.file_bytes)).decode() if preview else None,
        "textinfo": None,
    }


@router.post("/sdapi/v1/interrupt")
@router.post("/sdapi/v1/skip")
async def interrupt(request: Request) -> dict[str, Any]:
    """Cancel the client's running requests."""
    for run in request.app.state.server.webui.of(client_of(request)):
        for ticket in run.tickets:
            ticket.cancel()
    return {}
