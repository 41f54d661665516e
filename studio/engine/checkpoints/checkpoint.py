"""A checkpoint: one file with a running request and its state between two steps.

It is a safetensors file with the state's tensors, and JSON in its metadata: `request` (`SavedProgress`), `state` (see
`encoding`) and `sha256`, the hash of the whole file with zeros in place of the hash. It names no class to import: the
state has the class of what the generator's own `start` returns. Any other file is rejected with `CheckpointError`.

Try it: ``studio resume --list``
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, TypeVar

from pydantic import Field, ValidationError

from studio.engine.checkpoints.encoding import Damaged, Unsavable, decode_state, encode_state
from studio.errors import CheckpointError
from studio.files import open_regular
from studio.generator import State
from studio.recipe import RunRecord
from studio.weights.headers import read_header

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
_ZEROS = b"0" * 64
_HASH = b'"sha256":"%b"'
_S = TypeVar("_S", bound=State)


class SavedProgress(RunRecord):
    """What another process needs to resume a request (`schema_version` 2; 1 is read too).

    `position` of `steps` steps were complete when it was saved, at `saved` (ISO 8601, UTC), after `seconds` of work.
    """

    position: int = Field(ge=0)
    seconds: float = Field(default=0.0, ge=0)
    saved: str = Field(max_length=40)


@dataclass(frozen=True)
class Checkpoint:
    """A saved request: its id, its file and its progress. The state is read on demand."""

    id: str
    path: Path
    progress: SavedProgress

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file without its state. Raises CheckpointError."""
        try:
            with open_regular(path) as file:
                header = _header(file, os.fstat(file.fileno()).st_size)
            return cls(
                path.name.removesuffix(SUFFIX), path, SavedProgress.model_validate_json(_metadata(header)["request"])
            )
        except OSError as error:
            raise CheckpointError(path, f"it cannot be read: {error.strerror or error}") from error
        except (Damaged, KeyError, ValidationError):
            raise CheckpointError(path, "it is damaged, or was not written by this version of Studio") from None

    def state(self, first: _S, device: str) -> _S:
        """Read the state onto `device`; `first` is the state that `start` returned. Raises CheckpointError."""
        try:
            with open_regular(self.path) as file:
                data = file.read()
            header = _header(io.BytesIO(data), len(data))
            _check_hash(data, header)
            return decode_state(json.loads(_metadata(header)["state"]), _tensors(data, header), first, device)
        except OSError as error:
            raise CheckpointError(self.path, f"it cannot be read: {error.strerror or error}") from error
        except Damaged as error:
            raise CheckpointError(self.path, str(error)) from None
        except (KeyError, ValueError):
            raise CheckpointError(self.path, "it is damaged") from None


def pack(progress: SavedProgress, state: State) -> bytes:
    """Return the bytes of a checkpoint. Raises Unsavable if a value of the state has an unsupported type."""
    fields, tensors = encode_state(state)
    try:
        described = json.dumps(fields, allow_nan=False, separators=(",", ":"))
        data = bytearray(_serialize(tensors, {"request": progress.model_dump_json(), "state": described}))
    except (KeyError, ValueError) as error:  # a number of more than 4,300 digits; a dtype that the format lacks
        raise Unsavable(f"a field cannot be written: {error}") from None
    place = data.index(_HASH % _ZEROS) + len(_HASH) - 3
    data[place : place + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def _serialize(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Write safetensors; without tensors this does not need torch."""
    metadata["sha256"] = _ZEROS.decode()
    if tensors:
        from safetensors.torch import save

        return save(tensors, metadata)
    from safetensors import serialize

    return serialize({}, metadata)


def _tensors(data: bytes, header: bytes) -> dict[str, torch.Tensor]:
    if set(json.loads(header)) <= {"__metadata__"}:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise Damaged(f"it is damaged: {error}") from None


def _header(file: IO[bytes], size: int) -> bytes:
    header = read_header(file, size)
    if header is None:
        raise Damaged("it is damaged")
    return header


def _metadata(header: bytes) -> dict[str, str]:
    try:
        found = json.loads(header)["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged("it is damaged") from None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise Damaged("it is damaged")
    return found


def _check_hash(data: bytes, header: bytes) -> None:
    """Only the hash is unescaped in the header; quotes in the JSON texts are escaped."""
    stored = _metadata(header).get("sha256", "").encode()
    unsigned = data.replace(_HASH % stored, _HASH % _ZEROS, 1)
    if hashlib.sha256(unsigned).hexdigest().encode() != stored:
        raise Damaged("it is damaged: its contents do not match its sha256")
