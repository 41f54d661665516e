"""diffusers' modules, schedulers and pipelines from untrusted folders.

A class gets only the keys that its constructor declares. A pipeline is built from components loaded one by one, since
the library's own loader imports the modules that `model_index.json` names.

Try it: ``module("AutoencoderKL", Path("folder/vae"))``
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.loaders import allowed, check_index, check_size, offline, read_config


def config(kind: str, path: Path) -> dict[str, Any]:
    """The keys of a config that the class `kind` declares. Raises WeightsError."""
    return allowed(path, read_config(path), _declared(kind))


def module(kind: str, folder: Path) -> Any:
    """A module of class `kind` built from `config.json`, without weights. Raises WeightsError."""
    check_size(folder / "config.json", lambda: _made(kind, folder / "config.json"))
    return _made(kind, folder / "config.json")


def scheduler(kind: str, folder: Path) -> Any:
    """A scheduler of class `kind`. Raises WeightsError."""
    return _made(kind, folder / "scheduler_config.json")


def pretrained(kind: str, folder: Path) -> Any:
    """A module of class `kind` with the folder's safetensors, float32. Raises WeightsError, ModelError."""
    import diffusers

    check_index(folder)
    config(kind, folder / "config.json")  # checked here first, since the library reads it too
    with offline(folder):
        try:
            return getattr(diffusers, kind).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise _unusable(folder, error) from error


def pipeline(kind: str, index: dict[str, Any], path: Path, parts: dict[str, Any]) -> Any:
    """A pipeline of class `kind` of loaded components, with the plain settings of `model_index.json`."""
    import diffusers

    settings = {key: value for key, value in index.items() if not isinstance(value, dict | list)}
    known = [key for key in _declared(kind) if key not in parts]
    try:
        return getattr(diffusers, kind)(**parts, **allowed(path, settings, known))
    except (TypeError, ValueError, AttributeError) as error:
        raise _unusable(path, error) from error


def _declared(kind: str) -> list[str]:
    import diffusers

    return [name for name in inspect.signature(getattr(diffusers, kind).__init__).parameters if name != "self"]


def _made(kind: str, path: Path) -> Any:
    import diffusers

    values = config(kind, path)
    try:
        return getattr(diffusers, kind).from_config(values)
    except (
        ImportError,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        NotImplementedError,
        ArithmeticError,
    ) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> WeightsError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return WeightsError(path, f"diffusers cannot load `{path}`: {reason[:200]}", hint="download the model again")
