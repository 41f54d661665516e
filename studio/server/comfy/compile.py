"""Compiling a graph: from its output nodes back to the loaders, each node once, to the requests that it stands for.

Try it: ``pytest tests/studio/server/comfy/test_compile.py``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.errors import InputError, StudioError
from studio.media import Image
from studio.server.comfy.graph import MAX_DEPTH, GraphNode, NodeProblem, PromptRefused, refused_nodes
from studio.server.comfy.nodes import NODES, WIDGETS, NodeType, Slot
from studio.server.comfy.scene import NodeFault, Scene
from studio.server.comfy.values import Render, Saved
from studio.server.errors import problem_of


@dataclass(frozen=True)
class Compiled:
    """What a graph stands for: the renders, in the order in which they can run, and what is saved of them."""

    renders: tuple[Render, ...]
    saved: tuple[Saved, ...]


def compile_graph(graph: Mapping[str, GraphNode], scene: Scene) -> Compiled:
    """Compile a graph. Raises PromptRefused with every wrong node."""
    unknown = {id: (node.class_type, [_unknown(node)]) for id, node in graph.items() if node.class_type not in NODES}
    if unknown:
        raise refused_nodes(unknown)
    outputs = [id for id, node in graph.items() if NODES[node.class_type].saves]
    if not outputs:
        details = "connect SaveImage or PreviewImage"
        raise PromptRefused(NodeProblem("prompt_no_outputs", "Prompt has no outputs", details))
    compiler = _Compiler(graph, scene)
    for id in outputs:
        compiler.outputs_of(id)
    if not compiler.wrong:
        compiler.check_renders()
    if compiler.wrong:
        raise refused_nodes(compiler.wrong)
    return Compiled(tuple(scene.renders), tuple(scene.saved))


def _unknown(node: GraphNode) -> NodeProblem:
    message = f"Node '{node.class_type}' not found. Studio has {', '.join(NODES)}."
    return NodeProblem("missing_node_type", message)


class _Compiler:
    """Compiles the nodes of one graph. `wrong` has the problems so far."""

    def __init__(self, graph: Mapping[str, GraphNode], scene: Scene) -> None:
        self.wrong: dict[str, tuple[str, list[NodeProblem]]] = {}
        self._graph, self._scene = graph, scene
        self._made: dict[str, tuple[Any, ...] | None] = {}
        self._open: list[str] = []

    def outputs_of(self, id: str) -> tuple[Any, ...] | None:
        """The values of a node's outputs, or None if it, or a node before it, is wrong."""
        if id not in self._made:
            self._open.append(id)
            self._made[id] = self._compiled(id)
            self._open.pop()
        return self._made[id]

    def _compiled(self, id: str) -> tuple[Any, ...] | None:
        node = self._graph[id]
        kind = NODES[node.class_type]
        problems, given = self._given(node, kind)
        if problems:
            self._add(id, *problems)
        if given is None or problems:
            return None
        self._scene.node = id
        try:
            return kind.build(self._scene, given)
        except NodeFault as fault:
            self._add(id, fault.problem)
        except StudioError as error:
            self._add(id, _of_studio(error))
        return None

    def _given(self, node: GraphNode, kind: NodeType) -> tuple[list[NodeProblem], dict[str, Any] | None]:
        """What is wrong with the inputs, and their values, or None if a node before this one is wrong."""
        problems: list[NodeProblem] = []
        given: dict[str, Any] = {}
        broken = False
        ports = {port.name: port for port in kind.inputs}
        for name in node.inputs.keys() - ports.keys() - {*kind.ignored}:
            details = f"`{name}`; `{kind.name}` has {', '.join(ports)}"
            problems.append(NodeProblem("unknown_input", "The node has no such input", details, name))
        for name, port in ports.items():
            if name not in node.inputs:
                if port.required:
                    problems.append(NodeProblem("required_input_missing", "Required input is missing", name, name))
                continue
            try:
                given[name] = self._value(port, node.inputs[name])
                broken = broken or given[name] is None
            except NodeFault as fault:
                problems.append(fault.problem)
        return problems, None if broken else given

    def _value(self, port: Slot, value: Any) -> Any:
        """The value of an input, or None if it comes from a node that is wrong. Raises NodeFault."""
        if port.kind in WIDGETS:
            if isinstance(value, tuple):
                raise NodeFault(NodeProblem("invalid_input_type", "The input takes a value, not a link",
                                            f"{port.name}: a {port.kind}", port.name))  # fmt: skip
            return port.read(value, self._scene.lists)
        if not isinstance(value, tuple):
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            raise NodeFault(NodeProblem("bad_linked_input", message, port.name, port.name))
        id, slot = value
        found = self._graph.get(id)
        outputs = NODES[found.class_type].outputs if found is not None else ()
        if not 0 <= slot < len(outputs):
            details = f"{port.name}: the graph has no output {slot} of a node {id[:60]}"
            raise NodeFault(NodeProblem("bad_linked_input", "The linked node or output does not exist", details,
                                        port.name))  # fmt: skip
        if outputs[slot] != port.kind:
            details = f"{port.name}, received_type({outputs[slot]}) mismatch input_type({port.kind})"
            raise NodeFault(NodeProblem("return_type_mismatch", "Return type mismatch between linked nodes", details,
                                        port.name))  # fmt: skip
        if id in self._open or len(self._open) >= MAX_DEPTH:
            message = "The graph has a cycle" if id in self._open else f"More than {MAX_DEPTH} nodes in a row"
            raise NodeFault(NodeProblem("dependency_cycle" if id in self._open else "invalid_prompt", message,
                                        f"{port.name}: node {id[:60]}", port.name))  # fmt: skip
        made = self.outputs_of(id)
        return None if made is None else made[slot]

    def check_renders(self) -> None:
        """Check the inputs of all generators; what is wrong is a problem of the node that gave the value."""
        bad: list[Render] = []
        for render in self._scene.renders:
            if render.earlier in bad:
                continue
            values = {**render.choice.values, **render.values}
            values.pop("seed", None)
            try:
                if render.earlier is not None:
                    values["image"] = _placeholder(render.earlier.size)
                render.choice.generator.Inputs.parse(values)
            except StudioError as error:
                bad.append(render)
                name = error.field if isinstance(error, InputError) else ""
                id, input = render.origins.get(name, (render.node, None))
                self._add(id, _of_studio(error, input))

    def _add(self, id: str, *problems: NodeProblem) -> None:
        self.wrong.setdefault(id, (self._graph[id].class_type, []))[1].extend(problems)


def _of_studio(error: StudioError, input: str | None = None) -> NodeProblem:
    problem = problem_of(error)
    return NodeProblem("custom_validation_failed", problem.message, problem.message, input or problem.param)


def _placeholder(size: tuple[int, int]) -> Image:
    """A picture in place of one that is still to be generated."""
    import PIL.Image

    return Image(PIL.Image.new("RGB", size))
