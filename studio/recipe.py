"""The recipe: everything needed to reproduce an artifact, as data: the JobSpec and the facts that the host recorded.

A recipe is kept in two places: whole in the store, beside the artifact, and in the PNG's metadata without `created` and
`seconds` (see `Recipe.portable`), so that the same request on the same machine gives the same *file*, byte for byte.

A recipe from a file is untrusted: `Recipe.parse` limits its length, and pydantic validates it. A recipe that is not in
the store runs only after confirmation, within limits, and cannot name a path (`studio.store.replay`).

Try it: ``studio show FILE``
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, JsonValue, ValidationError, field_serializer, model_validator

from studio.errors import MediaError
from studio.spec import Frozen, JobSpec

MAX_RECIPE_BYTES = 1 << 20
SCHEMA = 2
_FACTS = (
    "generator", "generator_version", "plugin", "weights", "libraries", "device", "dtype", "threads", "batch_width",
    "facts", "steps",
)  # fmt: skip
WEBUI_SAMPLERS = {"dpmpp-2m": "DPM++ 2M", "euler": "Euler", "ddim": "DDIM", "ddpm": "DDPM", "unipc": "UniPC"}
"""The names of samplers in Stable Diffusion WebUI."""
_SHA256 = r"^[0-9a-f]{64}$"


class MediaRef(Frozen):
    """A reference to media by hash, for the inputs and outputs in a recipe."""

    sha256: str = Field(pattern=_SHA256)
    media_type: str = Field(max_length=100)


class PluginRef(Frozen):
    """The plugin of a generator: distribution (or file) name and version (or ``sha256:…`` of the file)."""

    name: str = Field(max_length=200)
    version: str = Field(max_length=200)


class BatchWidth(Frozen):
    """The smallest and largest batch size of the request's steps; the largest includes `finish`."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)


def split_spec(fields: Any) -> Any:
    """Convert the fields of a recipe or checkpoint of schema 1, which had no separate JobSpec, to the current schema;
    return anything else unchanged.
    """
    if not isinstance(fields, dict) or "spec" in fields or fields.get("schema_version", 1) != 1:
        return fields
    rest = {name: value for name, value in fields.items() if name != "schema_version"}
    names = [name for name in JobSpec.model_fields if name in rest and name != "parents"]
    spec = {name: value for name in names if (value := rest.pop(name)) is not None}
    if rest.pop("background", False):
        spec["priority"] = "background"
    spec = {"dtype": "float32", **spec, "model": {"sha256": rest.pop("weights", {})}}
    return {**rest, "spec": spec}


class RunRecord(Frozen):
    """The facts of a run of a JobSpec; `spec` has the dtype, threads and hashes of weights that were used.

    `device` has the hardware's name; `seconds` exclude loading and waiting.
    """

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    spec: JobSpec
    generator_version: str = Field(default="1", max_length=200)
    plugin: PluginRef
    device: str = Field(default="cpu", max_length=100)
    batch_width: BatchWidth = Field(default_factory=lambda: BatchWidth(min=1, max=1))
    notices: tuple[str, ...] = ()
    steps: int = Field(default=1, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, fields: Any) -> Any:
        return split_spec(fields)

    @field_serializer("spec")
    def _shortly(self, spec: JobSpec) -> dict[str, Any]:
        return spec.model_dump(mode="json", exclude_defaults=True)


class Recipe(RunRecord):
    """How an artifact was generated (frozen; `schema_version` 2; 1 is read too).

    `spec` is the portable part of the JobSpec. `facts` are added by the generator: noise schedule, sampler, every lossy
    option; and by the host: the names of the `attention` backends used. `parents` are the hashes of all source media.
    `created` (ISO 8601, UTC) and `seconds` differ between runs and are absent from the portable form.
    """

    kind: str = Field(max_length=50)
    libraries: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    output: MediaRef
    parents: tuple[str, ...] = ()
    created: str | None = Field(default=None, max_length=40)
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> Recipe:
        """Read a recipe from JSON (at most 1 MiB). Raises MediaError for anything that is not one."""
        size = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else len(text)
        if size > MAX_RECIPE_BYTES:
            raise MediaError(f"the recipe has {size:,} bytes; the limit is {MAX_RECIPE_BYTES:,}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text"
            message = f"the recipe is invalid: `{where[:80]}`: {first['msg'][:200]}"
            raise MediaError(message, hint="it is damaged, or was written by a newer Studio") from None

    def portable(self) -> Recipe:
        """Return the recipe without what differs between two equal runs (`created`, `seconds`)."""
        return self.model_copy(update={"created": None, "seconds": None})

    def to_json(self, *, indent: int | None = None) -> str:
        """Return JSON; equal recipes give equal text."""
        return self.model_dump_json(indent=indent, exclude_none=True)

    def changed_facts(self, other: Recipe) -> list[str]:
        """List the facts that differ from `other`, a later recipe, as ``weights.unet: 12ab… -> 34cd…``.

        Inputs, seed, output, notices and times are not compared, nor is a value that is None on either side.
        """
        return list(_changes("", self._facts(), other._facts()))

    def _facts(self) -> dict[str, Any]:
        spec = self.spec
        facts = self.model_dump(mode="json", exclude={"spec"})
        facts |= {
            "generator": spec.generator,
            "weights": spec.model.sha256,
            "dtype": spec.dtype,
            "threads": spec.threads,
        }
        return {name: facts[name] for name in _FACTS}

    def _done(self, name: str) -> Any:
        """The fact of that name, else the input."""
        return self.facts[name] if name in self.facts else self.spec.inputs.get(name)

    def parameters_text(self) -> str | None:
        """Return the `parameters` text that other image tools read, or None for a recipe without a prompt.

        Format: the prompt, a line ``Negative prompt: …`` if there is one, and a line of ``Key: value`` pairs, as the
        AUTOMATIC1111 web UI writes it, with its names of samplers. The facts `steps`, `guidance`, `sampler` and `size`
        take precedence over the inputs of these names. With a strength, `Steps` counts all steps from noise to image,
        as it does there.
        """
        prompt = self.spec.inputs.get("prompt")
        if not isinstance(prompt, str):
            return None
        lines = [prompt]
        if negative := self.spec.inputs.get("negative"):
            lines.append(f"Negative prompt: {negative}")
        values = {
            "Steps": self._done("steps") or self.steps,
            "Sampler": WEBUI_SAMPLERS.get(str(sampler := self._done("sampler")), sampler),
            "CFG scale": self._done("guidance"),
            "Seed": self.spec.seed,
            "Size": self._done("size"),
            "Model hash": _model_hash(self.spec.model.sha256),
            "Model": f"{self.plugin.name} {self.spec.generator} {self.generator_version}",
            "Denoising strength": self._done("strength"),
        }
        lines.append(
            ", ".join(f"{key}: {_quoted(_plain(value))}" for key, value in values.items() if value is not None)
        )
        return "\n".join(lines)


def _quoted(text: str) -> str:
    """The text, as JSON if it would be taken for several values."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _plain(value: Any) -> str:
    """Write 5.0 as ``5`` and a (width, height) pair as ``128x128``."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | tuple):
        return "x".join(str(part) for part in value)
    return str(value)


def _model_hash(weights: dict[str, str]) -> str | None:
    """One short hash for all weight files: the file's own, or the hash of the hashes."""
    import hashlib

    if not weights:
        return None
    if len(weights) == 1:
        return next(iter(weights.values()))[:10]
    return hashlib.sha256("".join(weights[name] for name in sorted(weights)).encode()).hexdigest()[:10]


def _changes(name: str, old: Any, new: Any) -> list[str]:
    """Walk two JSON trees and describe each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _changes(f"{name}.{key}".lstrip("."), old.get(key), new.get(key))]
    if old == new or (name == "threads" and None in (old, new)):
        return []
    return [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-4:]}"
