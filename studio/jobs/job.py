"""Jobs as data: what is to be done, and how far it is. Frozen, with a JSON form, for the database and every client.

Try it: ``studio jobs list --json``
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from studio.errors import InputError, StudioError, UnknownName, UsageError
from studio.recipe import MediaRef
from studio.spec import MAX_SEED, MAX_SPEC_BYTES, Frozen, JobSpec, Priority


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"

    @property
    def ended(self) -> bool:
        """Whether the job will not run again, unless it is retried."""
        return self in ENDED


ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.QUARANTINED)


class WorkflowWork(Frozen):
    """A workflow to run: its document as text, so that a change of the file does not change the job.

    Attributes:
        document: the YAML text.
        file: the path of the file, whose folder may have sub-workflows; empty if it may have none.
        inputs: JSON values; media are ``{"sha256", "media_type"}``.
        seed: from which nodes without a seed derive theirs.
        client, priority, time_limit_s, ai_label: of every node's request, as in a JobSpec.
        destination: where each output goes, as JSON of the caller, by the output's name.
    """

    document: str = Field(max_length=1 << 20)
    file: str = Field(default="", max_length=4000)
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    client: str = Field(default="", max_length=200)
    priority: Priority = "interactive"
    time_limit_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ai_label: bool | None = None
    destination: dict[str, JsonValue] | None = None

    def to_json(self) -> str:
        """JSON without fields that have their default; equal works give equal text."""
        return self.model_dump_json(exclude_defaults=True)


Work = JobSpec | WorkflowWork


def parse_work(text: str | bytes) -> Work:
    """Read a JobSpec, or a WorkflowWork if it has a `document`, from untrusted JSON of at most 8 MiB. Raises
    UsageError, UnknownName or InputError, in one line.
    """
    try:
        found = json.loads(text) if len(text) <= MAX_SPEC_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "document" not in found:
        return JobSpec.parse(text)
    try:
        return WorkflowWork.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))[:80]
        if first["type"] == "extra_forbidden":
            raise UnknownName("field of a workflow job", name, WorkflowWork.model_fields) from None
        raise InputError(name, f"`{name}` is {str(first['input'])[:60]!r}; {first['msg'][:200]}") from None


def seed_of(key: str) -> int:
    """32 bits, the same for the same idempotency key."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:4], "big")


def digest(work: Work) -> str:
    """The sha256 of the work, by which an idempotency key is checked."""
    return hashlib.sha256(work.to_json().encode("utf-8", "surrogatepass")).hexdigest()


class JobPosition(Frozen):
    """`position` of `steps` steps are done; the rest takes about `eta_s` seconds. `doing` is the activity: loading a
    model, or the node of a workflow.
    """

    position: int = 0
    steps: int = 0
    eta_s: float | None = None
    doing: str = ""


class JobError(Frozen):
    """Why a job failed: the class of the error, the message, and the remedy or None."""

    title: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: StudioError) -> JobError:
        """The JSON form of an error."""
        found = error.to_json()
        return cls(title=found["type"], message=found["message"], hint=found["hint"])


class JobArtifact(Frozen):
    """An output in the store. `name` is the workflow's output (with a number in a list), or the generator; `path` is
    the file that `destination` asked for, or the file in the store.
    """

    sha256: str
    media_type: str
    name: str
    path: str = ""

    @property
    def ref(self) -> MediaRef:
        """The output's hash and type."""
        return MediaRef(sha256=self.sha256, media_type=self.media_type)


class Job(Frozen):
    """A job as it was when it was read.

    Attributes:
        id: random and opaque.
        work: a JobSpec or a workflow.
        state: see JobState.
        client, priority: of the work.
        order: its place in the queue; jobs of one client and priority run from the lowest.
        attempts: how often it was started.
        crashes: how often in a row its process died in it, without a saved state in between.
        key: the client's idempotency key, or None.
        created, started, ended: in seconds since 1970, UTC; `started` is of the latest attempt.
        progress: of the running or paused job.
        asked: what the running job was asked to do: `pause`, `cancel`, or empty.
        error: why it failed or was quarantined.
        artifacts: the outputs.
        values: the outputs of a workflow that are not media, by name.
        notices: messages for the user, for example that a prompt was truncated.
    """

    id: str
    work: Work
    state: JobState = JobState.QUEUED
    client: str = ""
    priority: Priority = "interactive"
    order: float = 0.0
    attempts: int = 0
    crashes: int = 0
    key: str | None = None
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    progress: JobPosition | None = None
    asked: Literal["", "pause", "cancel"] = ""
    error: JobError | None = None
    artifacts: tuple[JobArtifact, ...] = ()
    values: dict[str, JsonValue] = Field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _kind_of_work(cls, found: Any) -> Any:
        work = found.get("work") if isinstance(found, dict) else None
        if not isinstance(work, dict):
            return found
        return {**found, "work": (WorkflowWork if "document" in work else JobSpec).model_validate(work)}

    @property
    def background(self) -> bool:
        """Whether it has low priority."""
        return self.priority == "background"

    @property
    def name(self) -> str:
        """What it runs, for display: the generator, or the workflow's file."""
        if isinstance(self.work, JobSpec):
            return self.work.generator
        return self.work.file.rpartition("/")[2] or "workflow"

    def to_json(self) -> str:
        """The job as JSON text in one line."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        """Read the result of `to_json`. Raises UsageError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))[:80]
            raise UsageError(f"the job's `{name}` is invalid: {first['msg'][:200]}") from None


@dataclass(frozen=True)
class JobEvent:
    """An event of a job. `number` rises, with gaps; `type` is of an engine's event (`studio.engine.events`), ``state``
    (with the new `state`), or ``node`` (of a workflow, with its report); `data` are its fields as JSON values.
    """

    number: int
    type: str
    data: dict[str, Any]

    @property
    def last(self) -> bool:
        """Whether the job has ended with it."""
        return self.type == "state" and JobState(self.data["state"]).ended

    def to_json(self) -> str:
        """The event as JSON text in one line."""
        return json.dumps({"number": self.number, "type": self.type, **self.data}, ensure_ascii=True)
