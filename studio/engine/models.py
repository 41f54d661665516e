"""Loaded models, first form: each generator's model is loaded once per dtype and kept.

Weights are hashed before they are loaded, and checked against a ``SHA256SUMS`` file that lies in their folder or in
one of the two above it. Hashes are kept per process by (path, size, time of change). This module knows nothing of
requests; memory and eviction come with a ledger later.

Try it: ``python -c "from studio.engine.models import *; print(hash_weights([Path('model.safetensors')]))"``
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio import torch_setup
from studio.errors import WeightsError
from studio.generator import Generator

SUMS = "SHA256SUMS"
_hashes: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class Model:
    """A loaded model and what the recipe says of it: `weights` maps file names to sha256."""

    value: Any
    device: str
    dtype: str
    weights: dict[str, str] = field(default_factory=dict)


class Models:
    """The models on one device. `dtype` overrides what generators choose."""

    def __init__(self, device: str, dtype: str | None = None) -> None:
        self.device, self._dtype = device, dtype
        self._loaded: dict[tuple[int, str], tuple[Generator, Model]] = {}

    def dtype_for(self, generator: Generator, wanted: str | None) -> str:
        """The dtype to use: the request's, else the user's, else the generator's choice."""
        return wanted or self._dtype or generator.dtype_for(self.device)

    def loaded(self, generator: Generator, wanted: str | None) -> bool:
        """Whether `get` would return at once."""
        return (id(generator), self.dtype_for(generator, wanted)) in self._loaded

    def get(self, generator: Generator, wanted: str | None) -> Model:
        """Return the model, loading it if need be. Raises WeightsError, or whatever the generator's `load` raises."""
        dtype = self.dtype_for(generator, wanted)
        key = (id(generator), dtype)
        if key not in self._loaded:
            hashes = hash_weights(generator.weights())
            torch_setup.prepare()
            model = Model(generator.load(self.device, dtype), self.device, dtype, hashes)
            self._loaded[key] = (generator, model)  # the generator is kept, so that its id stays its own
        return self._loaded[key][1]

    def clear(self) -> None:
        """Let go of every model."""
        self._loaded.clear()


def hash_weights(paths: Iterable[Path]) -> dict[str, str]:
    """Return file name -> sha256 for weight files, each checked against a ``SHA256SUMS`` that lists it.

    Names are relative to the folder of the ``SHA256SUMS``, else to the files' common folder. Raises WeightsError if a
    file is missing, unreadable or has another hash than listed.
    """
    files = [Path(path).absolute() for path in paths]
    common = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    hashes = {}
    for file in files:
        actual = _sha256(file)
        listed = _listed(file)
        if listed and listed[1] != actual:
            raise WeightsError(
                file,
                f"the weights `{file}` are damaged: their sha256 is {actual}, not {listed[1]} as `{SUMS}` has it",
                expected=listed[1],
                actual=actual,
                hint="install the package again, or make the weights anew",
            )
        hashes[(listed[0] if listed else file.relative_to(common).as_posix())] = actual
    return hashes


def _listed(file: Path) -> tuple[str, str] | None:
    """Find (name, sha256) of a file in the nearest SHA256SUMS; lines are as ``sha256sum`` writes them."""
    for folder in list(file.parents)[:3]:
        sums = folder / SUMS
        if not sums.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        for line in sums.read_text(encoding="utf-8").splitlines():
            digest, _, listed = line.strip().partition(" ")
            if listed.strip().removeprefix("*").removeprefix("./") == name:
                return name, digest.lower()
    return None


def _sha256(file: Path) -> str:
    """Hash a file, once per process for the same path, size and time of change."""
    try:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        if key not in _hashes:
            with file.open("rb") as opened:
                _hashes[key] = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        message = f"the weights `{file}` cannot be read: {error.strerror or error}"
        raise WeightsError(file, message, hint="install the package again") from error
    return _hashes[key]
