"""The layout of diffusers' folders: where a part lies, and which of its files are its weights. Loads no torch.

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
    """The folder of a part; a model of one net may have its files beside `model_index.json`, as the first ones had."""
    beside = not (folder / name).is_dir() and (folder / "config.json").exists()
    return folder if beside else folder / name


def tensors_of(folder: Path) -> list[Path]:
    """The safetensors of a part: those that its index names, else those without a variant's name
    (``….fp16.safetensors``) where there are any.

    Raises WeightsError for an index that cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    indexes = [each for each in sorted(folder.glob("*.safetensors.index.json")) if each.name.count(".") == 3]
    if indexes:
        try:
            named = set(json.loads(regular(indexes[0], MOST_INDEX))["weight_map"].values())
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise WeightsError(indexes[0], f"`{indexes[0]}` names no files of weights",
                               hint="get the model again") from None  # fmt: skip
        sharded = [file for file in files if file.name in named]
        if sharded:
            return sharded
    return [file for file in files if "." not in file.stem] or files


def components(folder: Path, known: Sequence[str]) -> dict[str, str]:
    """The class of each component that the folder's `model_index.json` names; none without that file.

    Raises WeightsError for a component that is not among the `known`: whoever leaves it out draws something else.
    """
    if not (folder / "model_index.json").exists():
        return {}
    index = read_config(folder / "model_index.json")
    found = {
        name: str(each[1]) for name, each in index.items() if isinstance(each, list) and len(each) == 2 and each[1]
    }
    if more := [name for name in found if name not in known]:
        message = f"`{folder}` is a `{index.get('_class_name')}` with the part `{more[0]}`, which is not known here"
        raise WeightsError(folder, message, hint=f"name a model whose parts are {', '.join(known)}")
    return found


def read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """A JSON file's object or list. Raises WeightsError if it is missing, damaged or something else."""
    if not path.exists():
        missing = f"`{path.parent}` has no `{path.name}`: it is no whole DDPM"
        raise WeightsError(path, missing, hint="name a folder in the layout of diffusers' DDPMPipeline")
    try:
        found = json.loads(regular(path, MOST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"`{path}` cannot be read as JSON: {error}", hint="get the model again") from None
    if not isinstance(found, kind):
        raise WeightsError(
            path, f"`{path}` is no JSON {'object' if kind is dict else 'list'}", hint="get the model again"
        )
    return found
