"""`models.lock`: the models of a data folder, each pinned by its revision and the sha256 of every file.

A readable JSON file. Copied to another machine, it makes `studio models pull` download the same bytes there. It is
replaced atomically under a file lock, so that two processes never lose each other's entries.

Try it: ``cat "$STUDIO_HOME"/models.lock``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from studio.errors import ModelError
from studio.files import make_folder, read_regular, store_error, write_atomically
from studio.models.formats import check_name

LOCK = "models.lock"
MOST_BYTES = 64 << 20


class Pin(BaseModel):
    """One file: its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class PinnedModel(BaseModel):
    """One model: the revision of its source when it was downloaded, and its files by name.

    `file` is the single file that the source names, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    revision: str = Field(pattern=r"^[A-Za-z0-9_.!+-]+$", max_length=200)  # `\w{1,200}` takes 70 ms to compile
    file: str | None = None
    files: dict[str, Pin] = Field(min_length=1)

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, Pin]) -> dict[str, Pin]:
        try:
            return {check_name(name): pin for name, pin in files.items()}
        except ModelError as error:
            raise ValueError(error.message) from None

    @model_validator(mode="after")
    def _hold_the_file(self) -> Self:
        if self.file is not None and self.file not in self.files:
            raise ValueError("`file` is not one of its files")
        return self

    @property
    def bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(pin.bytes for pin in self.files.values())


class _Lock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: Literal[1] = 1
    models: dict[str, PinnedModel] = {}


def read(home: Path) -> dict[str, PinnedModel]:
    """The entries by source. Raises ModelError for a file that is damaged or from a newer Studio."""
    path = home / LOCK
    try:
        data = read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read `{path}`: {error.strerror or error}") from error
    try:
        return _Lock.model_validate_json(data).models
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        hint = "repair it, or move it away and pull the models again"
        raise ModelError(f"`{path}` is not a valid lock file: {where}: {first['msg']}", hint=hint) from error


@contextmanager
def changing(home: Path) -> Iterator[dict[str, PinnedModel]]:
    """The entries, for editing; they are written at the end of the context, unless it raises."""
    with held(home / "models" / ".lock", wait=True):
        entries = read(home)
        yield entries
        text = _Lock(models=dict(sorted(entries.items()))).model_dump_json(indent=2, exclude_none=True)
        write_atomically(home / LOCK, text.encode() + b"\n")


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock between processes, which the kernel releases if this one dies. Raises ModelError if it is taken."""
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock = FileLock(path, blocking=wait)
    try:
        lock.acquire()
    except Timeout:
        message = "another process is pulling or removing this model"
        raise ModelError(message, hint="wait for it, then try again") from None
    except OSError as error:
        raise store_error(path, "open", error) from error
    try:
        yield
    finally:
        lock.release()
