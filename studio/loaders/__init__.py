"""The one place where files from elsewhere meet the libraries that build models of them.

A model's folder is data from a stranger. transformers, diffusers, open_clip, timm and peft read its configs themselves,
and some keys there name Python files, repositories on a hub, or other folders. So a library never reads such a file:
here it is read, bounded, and only the keys that describe a shape are handed on. Keys that ask for code are refused.
Loading happens `offline`. `tests/studio/loaders/test_calls.py` finds every call that goes another way.

This module holds what the libraries share; there is one module for each library. It loads no torch.

Try it: ``pytest tests/studio/loaders``
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import ModelError, WeightsError
from studio.files import read_regular, scratch_folder

MOST_CONFIG = 4 << 20  # bytes of a config
MOST_INDEX = 16 << 20  # bytes of a list of shards
MOST_TOKENIZER = 64 << 20  # bytes of a tokenizer's file; the largest in use have 35 MB
MOST_LIST = 4096  # members of a list in a config
MOST_LAYERS = 1024
MOST_BUFFERS = 1 << 30  # bytes that a module computes of its config; the largest known makes 300 MB
MOST_PARTS = 50_000  # parameters of a module, each a tensor; the largest known have 2,000
MOST_SIDE = 8192  # pixels
MOST_NUMBER = 1 << 24
MOST_WORDS = 1 << 22

CODE = (
    "auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_generate", "custom_code",
    "remote_code", "_target_", "code_revision",
)  # fmt: skip
"""Keys that ask a library to run Python that is not its own."""

_AGAIN = "get the model again, or name another"


def regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most`. Raises WeightsError; a pipe or device is never waited for."""
    try:
        return read_regular(path, most)
    except OSError as error:
        raise WeightsError(path, f"cannot read `{path}`: {error.strerror or error}", hint=_AGAIN) from error


def read_config(path: Path, most: int = MOST_CONFIG) -> dict[str, Any]:
    """A JSON object from a file. Raises WeightsError for another file, and for one that asks for code to be run."""
    try:
        found = json.loads(regular(path, most))
        refuse_code(path, found)
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"`{path}` is not JSON: {str(error)[:80]}", hint=_AGAIN) from None
    if not isinstance(found, dict):
        raise WeightsError(path, f"`{path}` is not a JSON object", hint=_AGAIN)
    return found


def refuse_code(path: Path, value: Any) -> None:
    """Raise WeightsError if a key, at any depth, asks for Python that came with the model or is on a hub."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CODE and inner not in (None, False, {}, [], ""):
                hint = "name a model that the installed libraries know by themselves"
                raise WeightsError(path, f"`{path}` asks to run its own code (`{key}`); no model may", hint=hint)
            refuse_code(path, inner)
    elif isinstance(value, list):
        for each in value:
            refuse_code(path, each)


def allowed(path: Path, values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The values of these keys, each a plain value in bounds. Raises WeightsError for one that is out of bounds."""
    return {key: _plain(path, key, value, 0) for key, value in values.items() if key in keys}


def _plain(path: Path, key: str, value: Any, depth: int) -> Any:
    if isinstance(value, dict | list):
        if len(value) > MOST_LIST or depth > 8:
            raise WeightsError(path, f"`{key}` in `{path}` is too long or too deep for a config", hint=_AGAIN)
        if isinstance(value, list):
            return [_plain(path, key, each, depth + 1) for each in value]
        return {name: _plain(path, name, each, depth + 1) for name, each in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > (most := _most(key)):
        raise WeightsError(path, f"`{key}` in `{path}` is {value:.6g}; it may be at most {most:,}", hint=_AGAIN)
    return value


def _most(key: str) -> int:
    if any(part in key for part in ("layers", "depth", "res_blocks")):
        return MOST_LAYERS
    return MOST_SIDE if key in ("image_size", "sample_size", "patch_size", "size", "crop_size") else MOST_NUMBER


def check_size(path: Path, build: Callable[[], Any]) -> None:
    """Raise WeightsError if what `build` makes of the config at `path` has too many parts, or too large buffers.

    Weights are bounded by the files that hold them. What a class computes (masks, tables of positions) is bounded by
    nothing but its config, so the module is built once without memory, on the meta device, and counted.
    """
    import torch

    try:
        with torch.device("meta"), _counted(path):
            size = sum(each.nbytes for each in build().buffers())
    except (RuntimeError, NotImplementedError):
        return  # a class that looks at numbers while it is built; the real build follows, and tells what is wrong
    if size > MOST_BUFFERS:
        message = f"`{path}` asks for tables of {size:,} bytes beside the weights; at most {MOST_BUFFERS:,} are made"
        raise WeightsError(path, message, hint=_AGAIN)


@contextmanager
def _counted(path: Path) -> Iterator[None]:
    """Raise WeightsError when a module of this thread gets more than `MOST_PARTS` parameters meanwhile."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    mine, count = threading.get_ident(), itertools.count(1)

    def hook(*_: Any) -> None:
        if threading.get_ident() == mine and next(count) > MOST_PARTS:
            raise WeightsError(path, f"`{path}` asks for more than {MOST_PARTS:,} parameters", hint=_AGAIN)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder among the system's temporary ones, of this user only. The next one removes what a kill leaves of it."""
    with scratch_folder(Path(tempfile.gettempdir()), mode=0o700) as made:
        yield made


def check_index(folder: Path) -> None:
    """Raise WeightsError if a shard index names files outside the folder, or an adapter names another model."""
    for path in sorted(folder.glob("*.index.json")):
        shards = read_config(path, MOST_INDEX).get("weight_map")
        if not isinstance(shards, dict) or any(
            not isinstance(name, str) or Path(name).name != name for name in shards.values()
        ):
            raise WeightsError(path, f"`{path}` names weights outside its folder", hint=_AGAIN)
    if (folder / "adapter_config.json").exists():
        hint = "merge the adapter into the model first: `merge_and_unload` in peft"
        raise WeightsError(folder, f"`{folder}` is an adapter of another model, which is not loaded", hint=hint)


_wanted: ContextVar[list[str] | None] = ContextVar("studio_network_wanted", default=None)
"""What asked for the network while this thread loads; None outside of `offline`."""


@contextmanager
def offline(what: Path) -> Iterator[None]:
    """Refuse this thread the network meanwhile. Raises ModelError if anything asked for it, caught or not."""
    _guard()
    wanted: list[str] = []
    token = _wanted.set(wanted)
    try:
        yield
    except Exception as error:
        if wanted:
            raise _reached(what, wanted[0]) from error
        raise
    finally:
        _wanted.reset(token)
    if wanted:
        raise _reached(what, wanted[0])


def _reached(what: Path, where: str) -> ModelError:
    message = f"loading `{what}` asked for the network ({where[:80]}), and nothing is fetched while a model loads"
    return ModelError(message, hint="put every file it needs into its folder, or pull it: `studio models pull`")


_NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")


@cache
def _guard() -> None:
    """Install the audit hook, once; it costs a comparison an event. Python lets no hook be removed."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith("socket.") and event in _NETWORK and (wanted := _wanted.get()) is not None:
            place = args[0] if event.startswith("socket.get") else args[1]
            if isinstance(place, str | bytes) and not event.startswith("socket.get"):
                return  # a socket of this machine's own
            wanted.append(f"{place!s}")
            raise ConnectionRefusedError(f"no network while a model loads: {place!s}")

    sys.addaudithook(hook)
