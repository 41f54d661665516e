"""A request on its way, as one file: who it is, and its state between two steps.

The file is a safetensors file: the state's tensors as they are, and in its metadata JSON texts: `request` (`Identity`),
`state` (see `encoding`) and `sha256`, the hash of the whole file with that hash itself written as zeros. Nothing in it
names a class to import: the class of the state is that of what the generator's own `start` returns. A file that is not
such a one is refused with `CheckpointError`, whatever it holds. This module knows nothing of folders or schedules.

Try it: ``studio resume --list``
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from studio.engine.encoding import Damaged, Unsavable, decode_state, encode_state
from studio.errors import CheckpointError
from studio.files import open_regular
from studio.generator import State
from studio.recipe import BatchWidth, PluginRef

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
SCHEMA = 1
_MAX_HEADER = 100_000_000  # bytes; what safetensors itself allows
_ZEROS = b"0" * 64
_HASH = b'"sha256":"%b"'
_S = TypeVar("_S", bound=State)


class Identity(BaseModel):
    """What another process needs to know of a request; the words are those of the recipe.

    `position` of `steps` steps were done when it was saved, at `saved` (ISO 8601, UTC), after `seconds` of work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    generator: str = Field(max_length=200)
    generator_version: str = Field(max_length=200)
    plugin: PluginRef
    inputs: dict[str, JsonValue]
    seed: int = Field(ge=0, lt=1 << 64)
    weights: dict[str, str]
    device: str = Field(max_length=100)
    dtype: str = Field(max_length=50)
    threads: int | None = Field(default=None, ge=1)
    preview_every: int = Field(default=0, ge=0)
    label: str = ""
    client: str = ""
    background: bool = False
    invariant: bool = False
    time_limit_s: float | None = Field(default=None, gt=0)
    destination: dict[str, JsonValue] | None = None
    position: int = Field(ge=0)
    steps: int = Field(ge=0)
    batch_width: BatchWidth
    notices: tuple[str, ...] = ()
    seconds: float = Field(default=0.0, ge=0)
    saved: str = Field(max_length=40)


@dataclass(frozen=True)
class Checkpoint:
    """A saved request: its id, its file, and who it is. The state is read when it is asked for."""

    id: str
    path: Path
    identity: Identity

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read who a file is of, and not its state. Raises CheckpointError."""
        try:
            with open_regular(path) as file:
                length = file.read(8)
                header = _header(length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER)))
            return cls(path.name.removesuffix(SUFFIX), path, Identity.model_validate_json(_metadata(header)["request"]))
        except OSError as error:
            raise CheckpointError(path, f"it cannot be read: {error.strerror or error}") from error
        except (Damaged, KeyError, ValidationError):
            raise CheckpointError(path, "it is damaged, or not written by this version of Studio") from None

    def state(self, first: _S, device: str) -> _S:
        """Read the state onto `device`; `first` is what `start` made. Raises CheckpointError."""
        try:
            with open_regular(self.path) as file:
                data = file.read()
            header = _header(data)
            _check_hash(data, header)
            return decode_state(json.loads(_metadata(header)["state"]), _tensors(data, header), first, device)
        except OSError as error:
            raise CheckpointError(self.path, f"it cannot be read: {error.strerror or error}") from error
        except Damaged as error:
            raise CheckpointError(self.path, str(error)) from None
        except (KeyError, ValueError):
            raise CheckpointError(self.path, "it is damaged") from None


def pack(identity: Identity, state: State) -> bytes:
    """Return the bytes of a checkpoint. Raises Unsavable for a state that holds something of another type."""
    fields, tensors = encode_state(state)
    try:
        described = json.dumps(fields, allow_nan=False, separators=(",", ":"))
        data = bytearray(_serialize(tensors, {"request": identity.model_dump_json(), "state": described}))
    except (KeyError, ValueError) as error:  # a number of more than 4,300 digits; a dtype that the format lacks
        raise Unsavable(f"a field cannot be written: {error}") from None
    place = data.index(_HASH % _ZEROS) + len(_HASH) - 3
    data[place : place + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def _serialize(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Write safetensors; without tensors there is no need of torch."""
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


def _header(data: bytes) -> bytes:
    """The JSON text at the beginning of a safetensors file, which its length in eight bytes precedes."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length or not 2 <= length <= _MAX_HEADER:
        raise Damaged("it is damaged")
    return data[8 : 8 + length]


def _metadata(header: bytes) -> dict[str, str]:
    try:
        found = json.loads(header)["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged("it is damaged") from None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise Damaged("it is damaged")
    return found


def _check_hash(data: bytes, header: bytes) -> None:
    """The hash stands unescaped in the header alone; the texts beside it have their quotes escaped."""
    told = _metadata(header).get("sha256", "").encode()
    unsigned = data.replace(_HASH % told, _HASH % _ZEROS, 1)
    if hashlib.sha256(unsigned).hexdigest().encode() != told:
        raise Damaged("it is damaged: its bytes are not those that were written")
