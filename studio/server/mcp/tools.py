"""The tools that agents see, from what generators declare.

The usual generator of each kind has a tool of its own with its inputs as JSON Schema (`generate_image` …); `generate`
runs any generator by name.

Try it: ``studio mcp``, and list the tools in an MCP client
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mcp_types as types

from studio.errors import UsageError
from studio.generator import Generator
from studio.server.catalogue import CLIP, COMPLETION, PICTURE, SPEECH, Catalogue, flags_of, model_input
from studio.spec import MAX_SEED

URI = "studio://artifacts/"
ROLES = {"image": PICTURE, "video": CLIP, "text": COMPLETION, "speech": SPEECH}
"""The kinds with a tool of their own, and what a generator must declare for it."""
_MEDIA = f"the id of an output, its URI ({URI}ID), or a data: URL with base64"
_OPTIONS: dict[str, Any] = {
    "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "description": "random seed; equal seeds give equal "
             "outputs"},
    "background": {"type": "boolean", "default": False, "description": "return the id of a job at once, for "
                   "`get_job` and `cancel_job`, instead of waiting"},
}  # fmt: skip
_READS = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
_MAKES = types.ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)


def usual(catalogue: Catalogue) -> dict[str, Generator]:
    """The usual generator of each kind that has one, by the name of its tool."""
    found = {}
    for kind, role in ROLES.items():
        try:
            found[f"generate_{kind}"] = catalogue.choose(role, None).generator
        except UsageError:  # no plugin has such a generator
            continue
    return found


def tools(catalogue: Catalogue) -> list[types.Tool]:
    """All tools."""
    made = [
        types.Tool(
            name=name,
            description=f"{generator.summary} The answer has a small preview and a link to the output.",
            input_schema=schema(generator),
            annotations=_MAKES,
        )
        for name, generator in usual(catalogue).items()
    ]
    return [
        *made,
        _tool("generate", "Run any generator of `list_generators`.", _MAKES, "generator", generator=_text(),
              inputs=_object("its inputs, as `list_generators` describes them"), **_OPTIONS),
        _tool("list_generators", "List all generators with the kind of their output; with `name`, one with the JSON "
              "Schema of its inputs.", _READS, name=_text("a generator")),
        _tool("list_models", "List the downloaded models, which an input `model` can name.", _READS),
        _tool("list_workflows", "List the built-in workflows with their inputs.", _READS),
        _tool("run_workflow", "Run a built-in workflow.", _MAKES, "name", name=_text("a workflow"),
              inputs=_object("its inputs"), seed=_OPTIONS["seed"]),
        _tool("get_artifact", "Show an output again: its facts, a small preview, and a link.", _READS, "id",
              id=_text("its id (the beginning of its sha256, at least 6 characters) or URI")),
        _tool("list_jobs", "List the jobs in the background, newest first.", _READS),
        _tool("get_job", "The state of a job in the background, and its output when it is done.", _READS, "id",
              id=_text("the job's id")),
        _tool("cancel_job", "Cancel a job in the background.", _MAKES, "id", id=_text("the job's id")),
    ]  # fmt: skip


def schema(generator: Generator, *, options: bool = True) -> dict[str, Any]:
    """The JSON Schema of a generator's inputs as agents give them, and of the options of a request."""
    found = generator.Inputs.model_json_schema()
    properties = {name: dict(each) for name, each in found.get("properties", {}).items()}
    for name, flag in flags_of(generator).items():
        if flag.type == "media":
            one = {"type": "string", "description": f"{flag.help}: {_MEDIA}"}
            properties[name] = {"type": "array", "items": one, "description": flag.help} if flag.multiple else one
        if name == model_input(generator) and name in properties:
            properties[name]["description"] = f"{flag.help}: one of `list_models`"
    return {**found, "type": "object", "properties": properties | (_OPTIONS if options else {})}


def _tool(name: str, about: str, kind: types.ToolAnnotations, /, *required: str, **properties: Any) -> types.Tool:
    described: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        described["required"] = list(required)
    return types.Tool(name=name, description=about, input_schema=described, annotations=kind)


def _text(about: str = "") -> Mapping[str, Any]:
    return {"type": "string"} | ({"description": about} if about else {})


def _object(about: str) -> Mapping[str, Any]:
    return {"type": "object", "description": about}
