"""The graph: what a node needs, what depends on it, and where a name leads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.workflow.expressions import NameReference, Use
from studio.workflow.graph import Graph, Node
from studio.workflow.problems import Place

from .conftest import SIX, compiled


def test_needs_and_descendants() -> None:
    graph = compiled(SIX)
    assert {name: set(graph.nodes[name].needs) for name in ("one", "three", "five", "six")} == {
        "one": {"a"}, "three": {"one"}, "five": {"three", "four"}, "six": {"two"},
    }  # fmt: skip
    assert graph.descendants("one") == {"three", "five", ".five"}
    assert graph.descendants("two") == {"four", "five", "six", ".five", ".six"}
    assert graph.descendants("five") == {".five"}


@given(st.lists(st.sets(st.integers(0, 9), max_size=3), min_size=1, max_size=10))
def test_descendants_are_those_of_a_search(drawn: list[set[int]]) -> None:
    """Node i depends on earlier nodes only, as in any graph that was checked."""
    needs = {f"n{i}": {f"n{j}" for j in each if j < i} for i, each in enumerate(drawn)}
    scope = {name: name for name in needs}
    nodes = {
        name: Node(name, Place("f", 1), "make", {need: NameReference(need) for need in each}, scope=scope)
        for name, each in needs.items()
    }
    graph = Graph("g", "", compiled(SIX).Inputs, {}, nodes, {}, {})

    def depends(name: str, on: str) -> bool:
        return any(need == on or depends(need, on) for need in needs[name])

    for on in nodes:
        assert graph.descendants(on) == {name for name in nodes if depends(name, on)}


def test_nodes_come_after_what_they_need() -> None:
    text = SIX.replace("nodes:\n", "nodes:\n  zero: {use: shout, inputs: {text: '${five}'}}\n")
    seen: set[str] = {"a", "b"}
    for name, node in compiled(text).nodes.items():
        assert node.needs <= seen
        seen.add(name)


def test_where_a_name_leads() -> None:
    place = Place("f", 1)
    scope = {"photo": "hero/photo", "hero.best": "hero.best", "item": "own"}
    node = Node("n", place, "make", {}, scope=scope)
    mapped = Node("m", place, "make", {}, map=NameReference("list"), scope=scope)
    assert node.find(Use("photo", "width")) == ("hero/photo", "width")
    assert node.find(Use("hero", "best")) == ("hero.best", None), "the output of a sub-workflow"
    assert (node.find(Use("item")), mapped.find(Use("item"))) == (("own", None), ("item", None))
    with pytest.raises(KeyError):
        node.find(Use("nothing"))
    assert mapped.needs == set(), "unknown names are told of elsewhere, and the loop's own are no nodes"
