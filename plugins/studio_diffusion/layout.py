"""Reading diffusers folders for this plugin, in addition to `studio.diffusion.layout`. Loads no torch.

Try it: `components(folder, ("unet", "scheduler"))`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.loaders import MOST_CONFIG, read_config, regular


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
