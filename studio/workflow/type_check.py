"""The type check of a graph: unknown names, cycles, and values of the wrong type, each reported once.

`check_types` returns the ports in topological order.

Try it: ``studio flow check best``
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from studio.workflow.expressions import (
    ATTRIBUTES,
    Expression,
    Listed,
    Literal,
    NameReference,
    TextTemplate,
    Use,
)
from studio.workflow.graph import LOCAL, Node
from studio.workflow.ports import Port, port_of_flag, port_of_value
from studio.workflow.problems import Problems

_INT = Port("int")


def check_types(nodes: Mapping[str, Node], inputs: Mapping[str, Port], problems: Problems) -> dict[str, Port]:
    """The port of each input and node, in topological order; problems are added to `problems`."""
    for node in nodes.values():
        _names(node, problems)
    ports = dict(inputs)
    for name in _order(nodes, problems):
        node = nodes[name]
        port = _Checked(node, ports, problems).port()
        if port is not None:
            ports[name] = port
    return ports


def _names(node: Node, problems: Problems) -> None:
    for expression in node.expressions:
        for use in expression.uses:
            try:
                node.find(use)
            except KeyError:
                if use.name in LOCAL:
                    problems.add(node.place, f"`{use.name}` is only defined with `map` or `repeat`")
                    continue
                outputs = [each for each in node.scope if each.startswith(f"{use.name}.")]
                if outputs:
                    wanted = f"{use.name}.{use.attribute}" if use.attribute else use.name
                    problems.unknown(node.place, "output of a sub-workflow", wanted, outputs)
                else:
                    problems.unknown(
                        node.place, "input or node", use.name[:60], [n for n in node.scope if "." not in n]
                    )


def _order(nodes: Mapping[str, Node], problems: Problems) -> list[str]:
    """The nodes in topological order; none if there is a cycle, which is added as a problem."""
    sorter = TopologicalSorter({name: sorted(node.needs & set(nodes)) for name, node in nodes.items()})
    try:
        return list(sorter.static_order())
    except CycleError as error:
        around = error.args[1]
        ring = " -> ".join(f"`{name}`" for name in around[:10]) + (" -> …" if len(around) > 10 else "")
        problems.add(nodes[around[0]].place, f"the nodes form a cycle: {ring}", "a node cannot depend on itself")
        return []


class _Checked:
    """One node. Dependencies without a port already have a problem, which is not reported again."""

    def __init__(self, node: Node, ports: Mapping[str, Port], problems: Problems) -> None:
        self.node, self.ports, self.problems = node, ports, problems

    def port(self) -> Port | None:
        """Check the types of the node's inputs, and return the node's port."""
        node = self.node
        for name in ("seed", "repeat", "best"):
            self._whole(name, getattr(node, name))
        if node.map is not None and (port := self._of(node.map)) is not None and not port.many:
            self._add(f"`map` must be a list, not {port}")
        if node.when is not None:
            self._of(node.when)
        if node.kind == "value":
            if node.port is not None:
                self._wire(f"`{node.name}`", node.inputs["value"], node.port)
            return node.port or self._of(node.inputs["value"])
        if node.kind == "pick":
            return self._pick()
        assert node.generator is not None
        flags = {flag.name: flag for flag in node.generator.Inputs.flags()}
        for name, expression in node.inputs.items():
            if not isinstance(expression, Literal):
                self._wire(f"`{name}` of `{node.generator.name}`", expression, port_of_flag(flags[name]))
        return Port(node.generator.output.kind, many=node.map is not None or node.repeat is not None)

    def _add(self, message: str, hint: str | None = None) -> None:
        self.problems.add(self.node.place, message, hint)

    def _whole(self, name: str, expression: Expression | None) -> None:
        if expression is None:
            return
        if isinstance(expression, Literal):
            value, low = expression.value, 1 if name == "best" else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                self._add(f"`{name}` is {value!r}, but must be a whole number of at least {low}")
        else:
            self._wire(f"`{name}`", expression, _INT)

    def _wire(self, what: str, expression: Expression, target: Port) -> None:
        port = self._of(expression)
        if port is None or port.feeds(target):
            return
        hint = None
        if port.many and not target.many and port.kind == target.kind:
            hint = "add `map: ${LIST}` and take `${item}`, or choose one with `pick`"
        elif target.many and not port.many and port.kind == target.kind:
            hint = "write a list: `[${NAME}]`"
        self._add(f"{what} must be {target}, not {port}", hint)

    def _pick(self) -> Port | None:
        given = self.node.inputs.get("from")  # missing if it was invalid, which is reported already
        source = None if given is None else self._of(given)
        if source is not None and not source.many:
            self._add(f"`pick` must be a list, not {source}", "a node with `map` or `repeat` gives one")
        if "by" in self.node.inputs:
            by = self._of(self.node.inputs["by"])
            if by is not None and by not in (Port("embedding"), Port("float", many=True), Port("int", many=True)):
                self._add(f"`by` must be scores (an embedding with a number for each), not {by}",
                          "a node of `clip-rank` gives them")  # fmt: skip
        return None if source is None else Port(source.kind, many=self.node.best is not None)

    def _of(self, expression: Expression) -> Port | None:
        """The port of an expression; None if it has a problem, which is reported."""
        if isinstance(expression, Literal):
            return port_of_value(expression.value)
        if isinstance(expression, NameReference):
            return self._of_use(Use(expression.name, expression.attribute))
        if isinstance(expression, Listed):
            return self._of_list(expression)
        assert isinstance(expression, TextTemplate)
        for use in expression.uses:
            self._readable(use)
        return Port("text")

    def _of_list(self, expression: Listed) -> Port | None:
        ports = [self._of(each) for each in expression.items]
        known = [each for each in ports if each is not None]
        if any(each.many for each in known):
            self._add("a list cannot hold a list", "name the list itself: `${LIST}`")
            return None
        kinds = {each.kind for each in known}
        kind = "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else "json"
        return Port(kind, many=True) if len(known) == len(ports) else None

    def _of_use(self, use: Use) -> Port | None:
        try:
            name, attribute = self.node.find(use)
        except KeyError:
            return None
        if name in LOCAL and (self.node.map is not None or self.node.repeat is not None):
            port = self._of_item() if name == "item" else _INT
        else:
            port = self.ports.get(name)
        if port is None or attribute is None:
            return port
        if attribute not in ATTRIBUTES or port != Port(ATTRIBUTES[attribute][0]):
            known = [f".{each}" for each, (kind, _) in ATTRIBUTES.items() if Port(kind) == port]
            self._add(f"`{use.name}` is {port} and has no `.{attribute[:60]}`",
                      f"it has {', '.join(f'`{each}`' for each in known)}" if known else None)  # fmt: skip
            return None
        return Port(ATTRIBUTES[attribute][1])

    def _of_item(self) -> Port | None:
        if self.node.map is None:
            self._add("`item` is only defined with `map`", "`repeat` gives `index` and `number`")
            return None
        source = self._of(self.node.map)
        return None if source is None else Port(source.kind)

    def _readable(self, use: Use) -> None:
        """Check that a template can print or iterate over the value."""
        port = self._of_use(use)
        if port is None:
            return
        if use.looped and not (port.many or port.kind in ("embedding", "json")):
            self._add(f"a loop needs a list; `{use.name}` is {port}")
        elif use.printed and (port.many or port.kind in ("image", "video", "audio", "embedding")):
            hint = "use `join`, `{% for %}` or `${NAME[0]}`" if port.many or port.kind == "embedding" else None
            self._add(f"`{use.name}` is {port}, which cannot be inserted into text", hint)
