"""Drawing a graph: Mermaid text for a README, or a standalone SVG, with inputs, nodes, outputs and edges.

Names and numbers come from an untrusted file, so all text is escaped.

Try it: ``studio flow draw best``
"""

from __future__ import annotations

import re
from html import escape

from studio.workflow.graph import Graph, Node

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _EDGE = 190, 52, 60, 22, 16
_FILL = {"input": "#eef3fb", "make": "#ffffff", "pick": "#fff6e5", "value": "#f4f4f4", "output": "#e9f6ec"}


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart, ending in a newline."""
    boxes, wires = _boxes(graph), _wires(graph)
    ids = {name: f"n{number}" for number, name in enumerate(boxes)}
    lines = ["flowchart LR"]
    shapes = {"input": ("([", "])"), "output": ("([", "])"), "pick": ("{{", "}}")}
    for name, (kind, title, note) in boxes.items():
        left, right = shapes.get(kind, ("[", "]"))
        label = "<br/>".join(_plain(each) for each in (title, note) if each)
        lines.append(f'    {ids[name]}{left}"{label}"{right}')
    lines += [f"    {ids[source]} --> {ids[target]}" for source, target in wires]
    return "\n".join(lines) + "\n"


def svg(graph: Graph) -> str:
    """The graph as an SVG document: layers from left to right, each node to the right of its dependencies."""
    boxes, wires = _boxes(graph), _wires(graph)
    places = _places(list(boxes), wires)
    width = 2 * _EDGE + max(x for x, _ in places.values()) + _WIDTH
    height = 2 * _EDGE + max(y for _, y in places.values()) + _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for source, target in wires:
        (x1, y1), (x2, y2) = places[source], places[target]
        x1, y1, x2, y2 = x1 + _WIDTH + _EDGE, y1 + _HEIGHT // 2 + _EDGE, x2 + _EDGE, y2 + _HEIGHT // 2 + _EDGE
        bend = max(30, (x2 - x1) // 2)
        parts.append(f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" fill="none" stroke="#667" '
                     'marker-end="url(#tip)"/>')  # fmt: skip
    for name, (kind, title, note) in boxes.items():
        parts.append(_box(places[name], kind, title, note))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _boxes(graph: Graph) -> dict[str, tuple[str, str, str]]:
    """Kind, title and note of each box, by name; an output's own node is its box."""
    shown = {name: output for output, name in graph.outputs.items()}
    boxes = {name: ("input", name, str(port)) for name, port in graph.inputs.items()}
    for name, node in graph.nodes.items():
        if name in shown:
            boxes[name] = ("output", shown[name], "output")
        else:
            boxes[name] = (node.kind, name, _note(node))
    return boxes


def _note(node: Node) -> str:
    """What the node does, in a few words."""
    if node.kind != "make":
        return {"pick": "pick", "value": "passed on"}[node.kind]
    assert node.generator is not None
    words = [node.generator.name]
    words += [word for word in ("map", "repeat", "when") if getattr(node, word) is not None]
    return ", ".join(words)


def _wires(graph: Graph) -> list[tuple[str, str]]:
    known = {*graph.inputs, *graph.nodes}
    return [(need, node.name) for node in graph.nodes.values() for need in sorted(node.needs) if need in known]


def _places(names: list[str], wires: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Left upper corners. `names` stand in an order in which they can run."""
    needs: dict[str, list[str]] = {name: [] for name in names}
    for source, target in wires:
        needs[target].append(source)
    layer: dict[str, int] = {}
    for name in names:
        layer[name] = 1 + max((layer[need] for need in needs[name]), default=-1)
    row: dict[str, float] = {}
    places: dict[str, tuple[int, int]] = {}
    for column in range(max(layer.values()) + 1):
        members = [name for name in names if layer[name] == column]
        members.sort(key=lambda name: sum(row[need] for need in needs[name]) / max(1, len(needs[name])))
        for index, name in enumerate(members):
            row[name] = float(index)
            places[name] = (column * (_WIDTH + _GAP_X), index * (_HEIGHT + _GAP_Y))
    return places


def _box(place: tuple[int, int], kind: str, title: str, note: str) -> str:
    x, y = place[0] + _EDGE, place[1] + _EDGE
    radius = _HEIGHT // 2 if kind in ("input", "output") else 6
    middle = x + _WIDTH // 2
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius}" fill="{_FILL[kind]}" stroke="#667"/>'
        f'<text x="{middle}" y="{y + 22}" text-anchor="middle" font-weight="bold">{escape(_short(title))}</text>'
        f'<text x="{middle}" y="{y + 40}" text-anchor="middle" fill="#556">{escape(_short(note))}</text>'
    )


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _plain(text: str) -> str:
    """Text for a Mermaid label: no mark that Mermaid or HTML would act on."""
    return re.sub(r"[^\w ,.;:/+-]", "", text)
