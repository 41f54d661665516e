"""The compiled workflow: nodes with known generators and checked types, in topological order.

YAML files and Python both compile to a graph. A graph holds no media except literals. Names are global: a node in the
sub-workflow `hero` is called ``hero/NAME``, and its outputs ``hero.NAME``.

Try it: ``python -c "import studio; print(list(studio.Studio().workflow('best').nodes))"``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal as Kind

from studio.generator import Generator
from studio.inputs import Inputs
from studio.workflow.expressions import Expression, Use
from studio.workflow.ports import Port
from studio.workflow.problems import Place

LOCAL = ("item", "index", "number")  # names that `map` and `repeat` define for their node


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        kind: `make` runs a generator, `pick` chooses from a list, `value` passes a value on (a sub-workflow's inputs
            and outputs).
        inputs: of the generator; `pick` has `from` and `by`, `value` has `value`.
        seed, map, repeat, when, best: the settings of these names, or None.
        port: the type of a `value`, if a sub-workflow declares it.
        scope: maps names in its expressions to names in the graph; a sub-workflow's output is ``sub.output``.
    """

    name: str
    place: Place
    kind: Kind["make", "pick", "value"]
    inputs: Mapping[str, Expression]
    generator: Generator | None = None
    seed: Expression | None = None
    map: Expression | None = None
    repeat: Expression | None = None
    when: Expression | None = None
    best: Expression | None = None
    port: Port | None = None
    scope: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def expressions(self) -> Iterator[Expression]:
        """All expressions of the node."""
        yield from self.inputs.values()
        yield from (each for each in (self.seed, self.map, self.repeat, self.when, self.best) if each is not None)

    def find(self, use: Use) -> tuple[str, str | None]:
        """Resolve a use to a name in the graph and the remaining attribute. KeyError for an unknown name."""
        if use.attribute and (whole := f"{use.name}.{use.attribute}") in self.scope:
            return self.scope[whole], None
        if use.name in LOCAL and (self.map is not None or self.repeat is not None):
            return use.name, use.attribute
        return self.scope[use.name], use.attribute

    @property
    def needs(self) -> frozenset[str]:
        """The names in the graph that it depends on; unknown names are left out."""
        found = set()
        for each in self.expressions:
            for use in each.uses:
                try:
                    found.add(self.find(use)[0])
                except KeyError:
                    continue
        return frozenset(found - set(LOCAL))


@dataclass(frozen=True)
class Graph:
    """A workflow that is ready to run.

    Attributes:
        name, about: for display.
        Inputs: the inputs, declared like a generator's.
        inputs: their ports.
        nodes: by name, each after its dependencies.
        outputs: the name in the graph of each output.
        ports: the type of each input and node.
        file: its file, or None for a workflow built in Python, which is code and can name any path.
    """

    name: str
    about: str
    Inputs: type[Inputs]
    inputs: Mapping[str, Port]
    nodes: Mapping[str, Node]
    outputs: Mapping[str, str]
    ports: Mapping[str, Port]
    file: Path | None = None

    def descendants(self, name: str) -> frozenset[str]:
        """The nodes that depend on this one, directly or indirectly."""
        found = {name}
        for node in self.nodes.values():
            if node.needs & found:
                found.add(node.name)
        return frozenset(found - {name})
