"""``/sdapi/v1/txt2img`` and ``img2img``.

Try it::

    curl http://127.0.0.1:7860/sdapi/v1/txt2img -H 'Content-Type: application/json' -d '{"prompt": "a red apple"}'
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from studio.errors import InputError
from studio.media import Image, Media
from studio.server.catalogue import EDIT, PICTURE, Choice, Role
from studio.server.running import apart, client_of, results, submit
from studio.server.sdapi.shape import sampler_of
from studio.server.uploads import decoded_base64, picture
from studio.spec import MAX_SEED

PREVIEW_EVERY = 5
_FITS = {0: "pad", 1: "crop", 2: "pad", 3: "pad"}  # resize modes; Studio keeps the proportions
router = APIRouter()


class Override(BaseModel):
    """Settings for one request."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: str | None = Field(default=None, max_length=4000)


class DrawBody(BaseModel):
    """Images to generate. Fields that Studio does not know are ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED)
    sampler_name: str | None = Field(default=None, max_length=100)
    sampler_index: str | None = Field(default=None, max_length=100)
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    cfg_scale: float | None = Field(default=None, ge=0)
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    override_settings: Override = Field(default_factory=Override)
    enable_hr: bool = False
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, fields: Any) -> Any:
        return (
            {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        )

    @property
    def sampler(self) -> str:
        """The WebUI's name of the sampler."""
        return self.sampler_name or self.sampler_index or ""

    def check(self) -> None:
        """Raise InputError for what Studio does not have."""
        scripts = [name for name, each in self.alwayson_scripts.items() if isinstance(each, dict) and each.get("args")]
        unsupported = {"script_name": bool(self.script_name), "enable_hr": self.enable_hr, "alwayson_scripts": scripts}
        if name := next((name for name, given in unsupported.items() if given), None):
            shown = f" (`{scripts[0][:40]}`)" if name == "alwayson_scripts" else ""
            raise InputError(name, f"`{name}`{shown} is not supported; leave it out")

    def values(self, choice: Choice) -> dict[str, Any]:
        """The inputs of the generator, as far as it has them."""
        given: dict[str, Any] = {
            "negative_prompt": self.negative_prompt or None,
            "steps": self.steps,
            "guidance": self.cfg_scale,
            "guidance_scale": None if choice.takes("guidance") else self.cfg_scale,
            "sampler": sampler_of(choice, self.sampler),
            "size": f"{self.width}x{self.height}" if self.width and self.height else None,
        }
        taken = {name: value for name, value in given.items() if value is not None and choice.takes(name)}
        return {**taken, "prompt": self.prompt, "seed": None if self.seed < 0 else self.seed}


class RedrawBody(DrawBody):
    """Images to generate from an image."""

    init_images: list[str] = Field(default_factory=list)
    mask: str | None = None
    inpainting_mask_invert: int = Field(default=0, ge=0, le=1)
    denoising_strength: float | None = Field(default=None, ge=0, le=1)
    resize_mode: int = Field(default=1, ge=0, le=3)

    async def media(self, choice: Choice) -> dict[str, Any]:
        """The image, the mask and what depends on them. Raises InputError, MediaError."""
        if len(self.init_images) != 1:
            message = f"`init_images` has {len(self.init_images)} images; the generator takes one"
            raise InputError("init_images", message)
        image = await picture(decoded_base64("init_images", self.init_images[0]))
        found: dict[str, Any] = {"image": Image(image.pil.convert("RGB"))}
        if self.mask:
            found["mask"] = self._mask(await picture(decoded_base64("mask", self.mask)), image)
        if self.denoising_strength is not None:
            found["strength"] = max(0.01, self.denoising_strength)
        if choice.takes("fit"):
            found["fit"] = _FITS[self.resize_mode]
        return found

    def _mask(self, mask: Image, image: Image) -> Image:
        """The mask at the size of the image, white where the image is to be changed."""
        import PIL.ImageOps

        made = mask.pil.convert("L").resize(image.size)
        return Image(PIL.ImageOps.invert(made) if self.inpainting_mask_invert else made)


@router.post("/sdapi/v1/txt2img")
async def txt2img(body: DrawBody, request: Request) -> JSONResponse:
    """Generate images from a prompt."""
    choice = _choice(request, body, PICTURE)
    return await _respond(request, choice, body, {})


@router.post("/sdapi/v1/img2img")
async def img2img(body: RedrawBody, request: Request) -> JSONResponse:
    """Generate images from a prompt and an image, or where `mask` is white."""
    choice = _choice(request, body, EDIT)
    return await _respond(request, choice, body, await body.media(choice))


def _choice(request: Request, body: DrawBody, role: Role) -> Choice:
    body.check()
    server = request.app.state.server
    if (n := body.batch_size * body.n_iter) > server.limits.outputs:
        raise InputError("batch_size", f"{n:,} images are asked for; the limit is {server.limits.outputs}")
    if len(body.prompt) + len(body.negative_prompt) > server.limits.prompt:
        raise InputError("prompt", f"the prompts have more than {server.limits.prompt:,} characters, the limit")
    named = body.override_settings.sd_model_checkpoint or server.webui.model
    found: Choice = server.catalogue.choose(role, named)
    return found


async def _respond(request: Request, choice: Choice, body: DrawBody, given: dict[str, Any]) -> JSONResponse:
    server, client = request.app.state.server, client_of(request)
    values = {**body.values(choice), **given, "client": client, "preview_every": PREVIEW_EVERY}
    if missing := next((name for name in given if not choice.takes(name)), None):
        raise InputError(missing, f"`{choice.name}` has no input `{missing}`")
    tickets = await submit(server.studio, choice, values, body.batch_size * body.n_iter)
    with server.webui.holding(client, tickets):
        made = await results(request, tickets)
    files = [base64.b64encode(await apart(each.file_bytes)).decode() for each in made]
    parameters = body.model_dump(mode="json", exclude={"init_images", "mask"})
    return JSONResponse({"images": files, "parameters": parameters, "info": json.dumps(_info(choice, body, made))})


def _info(choice: Choice, body: DrawBody, made: Sequence[Media]) -> dict[str, Any]:
    """What the WebUI tells of the images."""
    recipes = [each.recipe for each in made if each.recipe is not None]
    seeds = [each.spec.seed for each in recipes]
    width, height = made[0].size if isinstance(made[0], Image) else (0, 0)
    facts = {**recipes[0].spec.inputs, **recipes[0].facts}
    return {
        "prompt": body.prompt, "all_prompts": [body.prompt] * len(made),
        "negative_prompt": body.negative_prompt, "all_negative_prompts": [body.negative_prompt] * len(made),
        "seed": seeds[0], "all_seeds": seeds, "subseed": seeds[0], "all_subseeds": seeds, "subseed_strength": 0,
        "width": width, "height": height, "sampler_name": body.sampler, "cfg_scale": facts.get("guidance"),
        "steps": facts.get("steps"), "batch_size": body.batch_size, "sd_model_name": choice.name,
        "sd_model_hash": "", "index_of_first_image": 0, "extra_generation_params": {}, "styles": [],
        "infotexts": [each.parameters_text() or "" for each in recipes],
    }  # fmt: skip
