"""The layout of diffusers' folders: a component's folder and its weights. Loads no torch.

Try it: `tensors_of(part(folder, "unet"))`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.loaders import MOST_CONFIG, MOST_INDEX, read_config, regular


def part(folder: Path, name: str) -> Path:
    """The folder of a component; a model with one network may have its files beside `model_index.json`."""
    beside = not (folder / name).is_dir() and (folder / "config.json").exists()
    return folder if beside else folder / name


def tensors_of(folder: Path) -> list[Path]:
    """The safetensors of a component: those in its index, else those without a variant in the name
    (``….fp16.safetensors``), if any.

    Raises WeightsError for an index that cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    indexes = [each for each in sorted(folder.glob("*.safetensors.index.json")) if each.name.count(".") == 3]
    if indexes:
        try:
            named = set(json.loads(regular(indexes[0], MOST_INDEX))["weight_map"].values())
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise WeightsError(indexes[0], f"`{indexes[0]}` lists no weight files",
                               hint="get the model again") from None  # fmt: skip
        sharded = [file for file in files if file.name in named]
        if sharded:
            return sharded
    return [file for file in files if "." not in file.stem] or files


def components(folder: Path, known: Sequence[str]) -> dict[str, str]:
    """The class of each component in the folder's `model_index.json`; empty without that file.

    Raises WeightsError for a component that is not `known`: without it the output would differ.
    """
    if not (folder / "model_index.json").exists():
        return {}
    index = read_config(folder / "model_index.json")
    found = {
        name: str(each[1]) for name, each in index.items() if isinstance(each, list) and len(each) == 2 and each[1]
    }
    if more := [name for name in found if name not in known]:
        message = f"`{folder}` is a `{index.get('_class_name')}` with the component `{more[0]}`, which is not supported"
        raise WeightsError(folder, message, hint=f"use a model with only {', '.join(known)}")
    return found


def read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """The object or list in a JSON file. Raises WeightsError if it is missing, damaged or of another type."""
    if not path.exists():
        missing = f"`{path.parent}` has no `{path.name}`: the DDPM folder is incomplete"
        raise WeightsError(path, missing, hint="use a folder in the layout of diffusers' DDPMPipeline")
    try:
        found = json.loads(regular(path, MOST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"`{path}` cannot be read as JSON: {error}", hint="get the model again") from None
    if not isinstance(found, kind):
        raise WeightsError(
            path, f"`{path}` is not a JSON {'object' if kind is dict else 'list'}", hint="get the model again"
        )
    return found
