"""Safe loading of untrusted model folders with transformers, diffusers, open_clip, timm and peft.

These libraries read configs themselves, and some keys name Python files, repositories on a hub, or other folders. So
the libraries never read such a file: it is read here, with limits, and only keys that describe the model are passed on.
Keys that request code are rejected. Loading happens `offline`. `tests/studio/loaders/test_calls.py` finds calls that
bypass this package.

This module has the shared parts; there is one module per library. It loads no torch.

Try it: ``pytest tests/studio/loaders``
"""

from __future__ import annotations

import itertools
import json
import math
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
MOST_INDEX = 16 << 20  # bytes of a shard index
MOST_TOKENIZER = 64 << 20  # bytes of a tokenizer file; the largest known are 35 MB
MOST_LIST = 4096  # items of a list in a config
MOST_LAYERS = 1024
MOST_BUFFERS = 1 << 30  # bytes of buffers that a module computes from its config; the largest known are 300 MB
MOST_PARTS = 50_000  # parameter tensors of a module; the largest known have 2,000
MOST_SIDE = 8192  # pixels
MOST_NUMBER = 1 << 24
MOST_VALUES = 1 << 32  # of a parameter tensor; the largest known, of vocabularies, have 2^31
MOST_WORDS = 1 << 22

CODE = (
    "auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_generate", "custom_code",
    "remote_code", "_target_", "code_revision",
)  # fmt: skip
"""Keys that request remote code."""

_AGAIN = "download the model again, or use another"
_SIDES = ("image_size", "sample_size", "patch_size", "size", "crop_size", "pad_size")


def regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most`. Raises WeightsError; pipes and devices are rejected."""
    try:
        return read_regular(path, most)
    except OSError as error:
        raise WeightsError(path, f"cannot read `{path}`: {error.strerror or error}", hint=_AGAIN) from error


def read_config(path: Path, most: int = MOST_CONFIG) -> dict[str, Any]:
    """The JSON object in a file. Raises WeightsError for other files, and for one that requests code."""
    try:
        found = json.loads(regular(path, most))
        refuse_code(path, found)
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"`{path}` is not JSON: {str(error)[:80]}", hint=_AGAIN) from None
    if not isinstance(found, dict):
        raise WeightsError(path, f"`{path}` is not a JSON object", hint=_AGAIN)
    return found


def refuse_code(path: Path, value: Any) -> None:
    """Raise WeightsError if a key, at any depth, requests Python code from the model or a hub."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CODE and inner not in (None, False, {}, [], ""):
                hint = "use a model that the installed libraries support without remote code"
                raise WeightsError(path, f"`{path}` requests remote code (`{key}`), which is never run", hint=hint)
            refuse_code(path, inner)
    elif isinstance(value, list):
        for each in value:
            refuse_code(path, each)


def allowed(path: Path, values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The values of these keys. Raises WeightsError for a value beyond the limits."""
    return {key: _plain(path, key, value, 0) for key, value in values.items() if key in keys}


def _plain(path: Path, key: str, value: Any, depth: int) -> Any:
    if isinstance(value, dict | list):
        if len(value) > MOST_LIST or depth > 8:
            raise WeightsError(path, f"`{key}` in `{path}` is too long or too deep for a config", hint=_AGAIN)
        if isinstance(value, list):
            return [_plain(path, key, each, depth + 1) for each in value]
        sides = key in _SIDES and "longest_edge" not in value  # with it, both are numbers of pixels in some families
        return {name: _plain(path, key if sides else name, each, depth + 1) for name, each in value.items()}
    if isinstance(value, float) and math.isnan(value):
        raise WeightsError(path, f"`{key}` in `{path}` is not a number (NaN)", hint=_AGAIN)
    if value == -math.inf:  # what diffusers writes for `lambda_min_clipped`; as a size it is refused by all
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > (most := _most(key)):
        raise WeightsError(path, f"`{key}` in `{path}` is {value:.6g}; it must be at most {most:,}", hint=_AGAIN)
    return value


def _most(key: str) -> int:
    if any(part in key for part in ("layers", "depth", "res_blocks")):
        return MOST_LAYERS
    return MOST_SIDE if key in _SIDES else MOST_NUMBER


def check_size(path: Path, build: Callable[[], Any]) -> None:
    """Raise WeightsError if the module that `build` makes of the config at `path` has too many parameters or buffers.

    Weights are bounded by their files, but buffers (masks, position tables) only by the config, so the module is built
    once on the meta device, without memory, and measured.
    """
    import torch

    try:
        with torch.device("meta"), _counted(path):
            size = sum(each.nbytes for each in build().buffers())
    except (RuntimeError, NotImplementedError):
        return  # a class that reads values while it is built; the real build reports errors
    if size > MOST_BUFFERS:
        message = f"`{path}` needs buffers of {size:,} bytes; at most {MOST_BUFFERS:,} are allowed"
        raise WeightsError(path, message, hint=_AGAIN)


@contextmanager
def _counted(path: Path) -> Iterator[None]:
    """Raise WeightsError if modules built by this thread in the block have more than `MOST_PARTS` parameters, or one of
    more than `MOST_VALUES`: the real build makes each before it moves it to the meta device.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    mine, count = threading.get_ident(), itertools.count(1)

    def hook(module: Any, name: str, parameter: Any) -> None:
        if threading.get_ident() != mine:
            return
        if next(count) > MOST_PARTS:
            raise WeightsError(path, f"`{path}` needs more than {MOST_PARTS:,} parameter tensors", hint=_AGAIN)
        if parameter is not None and parameter.numel() > MOST_VALUES:
            message = f"`{path}` needs a `{name}` of {parameter.numel():,} values; at most {MOST_VALUES:,} are allowed"
            raise WeightsError(path, message, hint=_AGAIN)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, private to the user. If the process is killed, the next call removes it."""
    with scratch_folder(Path(tempfile.gettempdir()), mode=0o700) as made:
        yield made


def check_index(folder: Path) -> None:
    """Raise WeightsError for a shard index with files outside the folder, and for an adapter."""
    for path in sorted(folder.glob("*.index.json")):
        shards = read_config(path, MOST_INDEX).get("weight_map")
        if not isinstance(shards, dict) or any(
            not isinstance(name, str) or Path(name).name != name for name in shards.values()
        ):
            raise WeightsError(path, f"`{path}` lists weight files outside its folder", hint=_AGAIN)
    if (folder / "adapter_config.json").exists():
        hint = "merge the adapter into the model first: `merge_and_unload` in peft"
        raise WeightsError(folder, f"`{folder}` is an adapter (such as LoRA), not a whole model", hint=hint)


_attempts: ContextVar[list[str] | None] = ContextVar("studio_network_attempts", default=None)
"""Addresses that this thread tried to reach while loading; None outside of `offline`."""


@contextmanager
def offline(what: Path) -> Iterator[None]:
    """Block the network for this thread. Raises ModelError if it was used, even if the error was caught."""
    _guard()
    attempts: list[str] = []
    token = _attempts.set(attempts)
    try:
        yield
    except Exception as error:
        if attempts:
            raise _reached(what, attempts[0]) from error
        raise
    finally:
        _attempts.reset(token)
    if attempts:
        raise _reached(what, attempts[0])


def _reached(what: Path, where: str) -> ModelError:
    message = f"loading `{what}` tried to access the network ({where[:80]}), which is blocked while a model loads"
    return ModelError(message, hint="put all its files into the folder, or download it with `studio models pull`")


_NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")


@cache
def _guard() -> None:
    """Install the audit hook, once: it costs one comparison per event. Python cannot remove hooks."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith("socket.") and event in _NETWORK and (attempts := _attempts.get()) is not None:
            place = args[0] if event.startswith("socket.get") else args[1]
            if isinstance(place, str | bytes) and not event.startswith("socket.get"):
                return  # a Unix socket
            attempts.append(f"{place!s}")
            raise ConnectionRefusedError(f"no network while a model loads: {place!s}")

    sys.addaudithook(hook)
