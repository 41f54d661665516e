"""Graphs as clients send them: nodes by id, each with its class and inputs, which are values or links to other nodes.

A graph is untrusted: its numbers of nodes and inputs and the lengths of texts are limited, and nothing in it is
evaluated. Errors have ComfyUI's form.

Try it: ``parse({"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}})``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
)
from pydantic import JsonValue as Json

from studio.server.errors import HttpProblem, clean

MAX_CHARACTERS = 256 << 10
MAX_NODES = 500
MAX_DEPTH = 100
"""Of links: the longest chain of nodes."""

Name = Annotated[str, Field(min_length=1, max_length=100)]
Link = tuple[str, int]
"""The id of a node, and the number of its output."""
Scalar = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=32_000)] | None


class PromptBody(BaseModel):
    """The body of ``POST /prompt``; other fields, such as `extra_data`, are ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    prompt: dict[str, Json]
    client_id: str | None = Field(default=None, max_length=200)
    prompt_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,100}$")
    front: bool = False

    @field_validator("prompt")
    @classmethod
    def _check_size(cls, prompt: dict[str, Any]) -> dict[str, Any]:
        """Graphs are kept in the history, which is sent as JSON."""
        if len(json.dumps(prompt, allow_nan=False)) > MAX_CHARACTERS:
            raise ValueError(f"the graph has more than {MAX_CHARACTERS:,} characters")
        return prompt


class GraphNode(BaseModel):
    """A node: its class, and its inputs by name."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    class_type: Name
    inputs: dict[Name, Scalar | Link] = Field(default_factory=dict, max_length=64)

    @field_validator("inputs", mode="before")
    @classmethod
    def _ids_as_text(cls, inputs: Any) -> Any:
        """Links may name a node by a number."""
        if not isinstance(inputs, dict):
            return inputs
        return {
            name: (str(each[0]), each[1]) if isinstance(each, list) and len(each) == 2 else each
            for name, each in inputs.items()
        }


@dataclass(frozen=True)
class NodeProblem:
    """What is wrong with a node, or with one of its inputs; `kind` is ComfyUI's word for it."""

    kind: str
    message: str
    details: str = ""
    input: str | None = None

    def to_json(self) -> dict[str, Any]:
        """In ComfyUI's form."""
        extra = {"input_name": self.input} if self.input else {}
        return {"type": self.kind, "message": self.message, "details": self.details, "extra_info": extra}


class PromptRefused(Exception):
    """A graph that cannot run: what is wrong in general, and by the ids of nodes with their classes."""

    def __init__(self, problem: NodeProblem, nodes: Mapping[str, tuple[str, list[NodeProblem]]] | None = None) -> None:
        super().__init__(problem.message)
        self.problem, self.nodes = problem, nodes or {}

    def to_json(self) -> dict[str, Any]:
        """The body of the response, in ComfyUI's form."""
        nodes = {
            id: {"errors": [each.to_json() for each in found], "dependent_outputs": [], "class_type": kind}
            for id, (kind, found) in self.nodes.items()
        }
        return {"error": self.problem.to_json(), "node_errors": nodes}


def error_body(problem: HttpProblem) -> dict[str, Any]:
    """An error that is not about a graph, in ComfyUI's form."""
    return PromptRefused(NodeProblem(problem.code, problem.message, input=problem.param)).to_json()


def refused_nodes(nodes: Mapping[str, tuple[str, list[NodeProblem]]]) -> PromptRefused:
    """The exception for a graph with wrong nodes. Its general part has all of what is wrong, as some clients show only
    that.
    """
    said = [f"node {id} ({kind}): {each.message}{f': {each.details}' if each.details else ''}"
            for id, (kind, found) in nodes.items() for each in found]  # fmt: skip
    general = NodeProblem(
        "prompt_outputs_failed_validation", "Prompt outputs failed validation", clean("; ".join(said))
    )
    return PromptRefused(general, nodes)


def parse(prompt: Mapping[str, Any]) -> dict[str, GraphNode]:
    """The nodes of a graph, by id. Raises PromptRefused."""
    if not prompt:
        raise PromptRefused(NodeProblem("prompt_no_outputs", "Prompt has no outputs", "the graph has no nodes"))
    if len(prompt) > MAX_NODES:
        details = f"the graph has {len(prompt):,} nodes; the limit is {MAX_NODES}"
        raise PromptRefused(NodeProblem("invalid_prompt", "The graph is too large", details))
    found: dict[str, GraphNode] = {}
    wrong: dict[str, tuple[str, list[NodeProblem]]] = {}
    for id, node in prompt.items():
        if len(id) > 100:
            raise PromptRefused(NodeProblem("invalid_prompt", "The id of a node is too long", clean(id[:60])))
        try:
            found[id] = GraphNode.model_validate(node)
        except ValidationError as error:
            wrong[id] = _invalid(node, error)
    if wrong:
        raise refused_nodes(wrong)
    return found


def _invalid(node: Any, error: ValidationError) -> tuple[str, list[NodeProblem]]:
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    kind = str(node.get("class_type", ""))[:100] if isinstance(node, dict) else ""
    if where[:1] == ["inputs"] and len(where) > 1:
        name = clean(where[1])[:100]
        details = f"`{name}` must be a text, a number, true, false, or a link [node, output]"
        return kind, [NodeProblem("invalid_input_type", "An input has no valid value", details, name)]
    if where == ["class_type"]:
        return kind, [NodeProblem("missing_node_type", "The node has no valid `class_type`")]
    return kind, [NodeProblem("invalid_prompt", "The node is not valid", clean(first["msg"])[:200])]
