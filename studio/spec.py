"""Requests as data: JobSpec (generator, inputs, seed, client, priority …) and ModelRef (which weights).

Python, the command line, workflows and servers submit a JobSpec; requests, checkpoints and recipes contain one. Both
are frozen, hold only JSON values and have a version, so that they can be sent to another process, over a socket or to a
database. Outside input is untrusted: `JobSpec.parse` limits its length and rejects unknown fields.

Try it: ``python -c "import studio; print(studio.JobSpec(generator='image', inputs={'prompt': 'a kiwi'}, seed=7))"``
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from studio.errors import InputError, UnknownName, UsageError

SCHEMA = 1
MAX_SEED = (1 << 63) - 1  # of a request; a recipe may hold up to 2**64 - 1
MAX_SPEC_BYTES = 8 << 20
Priority = Literal["interactive", "background"]
PRIORITIES: tuple[str, ...] = get_args(Priority)
DTYPES = ("float32", "bfloat16", "float16")
OPTIONS = (
    "seed", "dtype", "invariant", "client", "priority", "time_limit_s", "preview_every", "stream", "label",
    "stored", "destination", "ai_label",
)  # fmt: skip
"""The fields of a JobSpec that a caller can give along with a generator's inputs; inputs cannot use these names."""


class Frozen(BaseModel):
    """Base of serializable models: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Addition(Frozen):
    """Weights that are loaded with a model and change it.

    Attributes:
        kind: ``lora``, ``embedding``, ``vae``, ``controlnet`` or ``ip_adapter``.
        source: as of a ModelRef.
        weight: how strongly it is applied; only LoRA and IP-Adapters have other weights than 1.
    """

    kind: str = Field(max_length=50)
    source: str = Field(max_length=4000)
    weight: float = Field(default=1.0, ge=-10, le=10, allow_inf_nan=False)

    @property
    def path(self) -> Path:
        """The path of a located addition."""
        return Path(self.source)


_WEIGHTED = re.compile(r"(?s)(.+):([+-]?(?:\d+\.?\d*|\.\d+))")


def source_and_weight(text: str) -> tuple[str, float]:
    """The source and the weight of an addition from text such as ``style.safetensors:0.8``."""
    found = _WEIGHTED.fullmatch(text)
    return (found[1], float(found[2])) if found else (text, 1.0)


class ModelRef(Frozen):
    """Which weights.

    Attributes:
        source: a downloaded model's name or source, a folder or a file; empty is the generator's own. A located ref
            (`studio.models.locate`) has an absolute path here.
        variant: a variant of the weights that the generator defines, such as ``int8``; empty is its default.
        additions: what is loaded with the model, in order.
        revision: of a downloaded model, such as a commit; if given, the downloaded model must have it.
        sha256: hashes of the files by name; if given, the files must match them.
    """

    source: str = Field(default="", max_length=4000)
    variant: str = Field(default="", max_length=100)
    additions: tuple[Addition, ...] = Field(default=(), max_length=32)
    revision: str = Field(default="", max_length=200)
    sha256: dict[str, str] = Field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The path of the weights of a located ref; None for the generator's own."""
        return Path(self.source) if self.source else None

    @property
    def form(self) -> Hashable:
        """What makes a model of the weights, besides the generator: the variant and the additions."""
        return self.variant, tuple((each.kind, each.source, each.weight) for each in self.additions)

    @property
    def key(self) -> Hashable:
        """The identity of a located ref."""
        return self.source, self.form

    def unpinned(self) -> Self:
        """A copy without revision and hashes."""
        return self.model_copy(update={"revision": "", "sha256": {}})


class JobSpec(Frozen):
    """One execution of one generator (frozen; `schema_version` 1).

    Attributes:
        generator: by name.
        inputs: JSON values; media are ``{"sha256", "media_type"}``. The weights are in `model`.
        seed: from 0 to 2**63 - 1.
        model: which weights.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None is the generator's default.
        threads: CPU threads, at least 1; None is the host's choice. A replay uses the recorded number.
        invariant: never batch with other requests, so that the output does not depend on them.
        parents: hashes of further source media, which are not among the inputs, for the recipe.
        client: name of the client; clients share a device fairly.
        priority: ``interactive``, or ``background`` for low priority.
        time_limit_s: timeout of each call of the generator, in seconds; None is the generator's.
        preview_every: steps between two previews; 0 is no previews.
        stream: whether text is reported as it is written, by Delta events.
        label: the caller's label.
        stored: whether the output and its source media are put into the store.
        destination: where the output goes, as JSON of the caller, for resuming the request after a crash.
        ai_label: whether the output's file is labelled as made by AI; None is the host's setting.
    """

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    generator: str = Field(max_length=200)
    inputs: dict[str, JsonValue] = Field(default_factory=dict)  # pydantic would copy a default, deeply, each time
    seed: int = Field(ge=0, lt=1 << 64)
    model: ModelRef = Field(default_factory=ModelRef)
    dtype: str | None = Field(default=None, max_length=50)
    threads: int | None = Field(default=None, ge=1)
    invariant: bool = False
    parents: tuple[str, ...] = ()
    client: str = Field(default="", max_length=200)
    priority: Priority = "interactive"
    time_limit_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    preview_every: int = Field(default=0, ge=0)
    stream: bool = False
    label: str = Field(default="", max_length=1000)
    stored: bool = True
    destination: dict[str, JsonValue] | None = None
    ai_label: bool | None = None

    @field_validator("schema_version", mode="before")
    @classmethod
    def _not_newer(cls, value: Any) -> Any:
        if isinstance(value, int) and value > SCHEMA:
            raise ValueError(f"is {value}, of a newer Studio; this one reads {SCHEMA}")
        return value

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read a JobSpec from JSON of at most 8 MiB. Raises UsageError, UnknownName or InputError, in one line."""
        size = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else len(text)
        if size > MAX_SPEC_BYTES:
            raise UsageError(f"the job spec has {size:,} bytes; the limit is {MAX_SPEC_BYTES:,}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError("the job spec is not a JSON object", hint='such as {"generator": "image", "seed": 1}')
        return cls.check(found)

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> Self:
        """Make a JobSpec of fields from outside. Raises UnknownName or InputError, in one line."""
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = [str(part) for part in first["loc"]]
            name = ".".join(path)[:80]
            if first["type"] == "extra_forbidden":
                known = ModelRef if path[0] == "model" and len(path) > 1 else cls
                raise UnknownName("field of a job spec", name, known.model_fields) from None
            if first["type"] == "missing":
                raise InputError(name, f"`{name}` is missing from the job spec") from None
            if first["type"] == "value_error":
                raise InputError(name, f"`{name}` {first['ctx']['error']}") from None
            raise InputError(name, f"`{name}` is {str(first['input'])[:60]!r}; {first['msg'][:200]}") from None

    def portable(self) -> Self:
        """The fields that determine the output, without client, priority, destination and the like."""
        kept = ("generator", "inputs", "seed", "model", "dtype", "threads", "invariant", "parents")
        return type(self)(**{name: getattr(self, name) for name in kept})

    def to_json(self) -> str:
        """JSON without fields that have their default; equal specs give equal text."""
        return self.model_dump_json(exclude_defaults=True)
