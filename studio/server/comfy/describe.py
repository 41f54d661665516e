"""``/object_info``, ``/system_stats`` and the lists that clients ask for when they connect.

Try it: ``curl http://127.0.0.1:7860/system_stats``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import psutil
from fastapi import APIRouter, Request

from studio import devices
from studio.errors import UnknownName
from studio.media import Image
from studio.server.catalogue import Catalogue, Role
from studio.server.comfy.nodes import ADDITIONS, MODELS, NODES
from studio.server.comfy.scene import Lists
from studio.server.running import apart
from studio.versions import libraries

SAMPLED = Role(
    "images with a sampler", Image, frozenset({"prompt", "negative", "size", "steps", "guidance", "sampler"})
)
"""What a sampler node needs of a generator."""
_FILES = (".safetensors", ".gguf")
COMFYUI = "0.3.60"
"""The version of ComfyUI whose interface this is; clients ask for a least one."""
router = APIRouter()


def names(catalogue: Catalogue) -> Lists:
    """The names that loaders can have: the models of `SAMPLED`, and the downloaded models that are none of them."""
    taken = {each.model for each in catalogue.choices(SAMPLED)}
    others = [each for each in catalogue.downloaded() if each not in taken]
    return {MODELS: _shown(catalogue.names(SAMPLED)), ADDITIONS: _shown(others)}


def _shown(names: Sequence[str]) -> dict[str, str]:
    """Names as clients see them, with the real ones. Of a file it is the file's name, as other people's graphs have it,
    and of a folder the folder's: no path of the machine is shown.
    """
    found: dict[str, str] = {}
    for name in names:
        shown = name.rpartition("/")[2] if "file:" in name or PurePosixPath(name).suffix in _FILES else name
        number = 2
        while shown in found:
            stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
            shown, number = f"{stem}-{number}{dot}{suffix}", number + 1
        found[shown] = name
    return found


@router.get("/object_info")
@router.get("/api/object_info")
async def object_info(request: Request) -> dict[str, Any]:
    """Describe the known nodes, with the names that they can have, as lists in ComfyUI's older form."""
    lists = await apart(names, request.app.state.server.catalogue)
    return {name: each.described(lists) for name, each in NODES.items()}


@router.get("/object_info/{node}")
@router.get("/api/object_info/{node}")
async def node_info(node: str, request: Request) -> dict[str, Any]:
    """Describe one node; an empty object for an unknown one."""
    if node not in NODES:
        return {}
    return {node: NODES[node].described(await apart(names, request.app.state.server.catalogue))}


@router.get("/embeddings")
@router.get("/api/embeddings")
async def embeddings() -> list[str]:
    """List the words of textual inversions that prompts can name: none."""
    return []


@router.get("/extensions")
@router.get("/api/extensions")
async def extensions() -> list[str]:
    """List the scripts of extensions: none."""
    return []


@router.get("/models")
async def model_folders() -> list[str]:
    """List the kinds of models."""
    return [*_FOLDERS]


@router.get("/models/{folder}")
async def model_names(folder: str, request: Request) -> list[str]:
    """List the names of a kind of models."""
    if folder not in _FOLDERS:
        raise UnknownName("folder of models", folder[:80], _FOLDERS)
    lists = await apart(names, request.app.state.server.catalogue)
    return [name for each in _FOLDERS[folder] for name in lists[each]]


_FOLDERS = {
    "checkpoints": (MODELS,), "diffusion_models": (MODELS,), "unet": (MODELS,), "clip": (MODELS,),
    "text_encoders": (MODELS,), "vae": (MODELS, ADDITIONS), "loras": (ADDITIONS,), "controlnet": (ADDITIONS,),
}  # fmt: skip


@router.get("/system_stats")
@router.get("/api/system_stats")
async def system_stats() -> dict[str, Any]:
    """Describe the system and its devices, with memory in bytes."""
    return await apart(_system_stats)


def _system_stats() -> dict[str, Any]:
    versions, memory = libraries(), psutil.virtual_memory()
    found = [devices.device(name) for name in devices.choose_many(None)]
    listed = [
        {
            "name": f"{each.name} {each.description}", "type": each.kind, "index": index,
            "vram_total": each.total_memory(), "vram_free": each.free_memory(),
            "torch_vram_total": each.total_memory(), "torch_vram_free": each.free_memory(),
        }
        for index, each in enumerate(found)
    ]  # fmt: skip
    system = {
        "os": sys.platform, "ram_total": memory.total, "ram_free": memory.available, "comfyui_version": COMFYUI,
        "python_version": versions["python"], "pytorch_version": versions.get("torch", ""), "embedded_python": False,
        "argv": [],
    }  # fmt: skip
    return {"system": system, "devices": listed}
