"""Drawings: every node and wire is there, left of what needs it, and no name can add to the drawing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.workflow import mermaid, svg
from studio.workflow.draw import _plain

from .conftest import SIX, compiled

HOSTILE = '"] --> x; <script>&"'
SVG = "{http://www.w3.org/2000/svg}"


def test_mermaid_has_every_node_and_wire() -> None:
    lines = mermaid(compiled(SIX)).splitlines()
    assert lines[0] == "flowchart LR"
    assert '    n0(["a<br/>text"])' in lines
    assert sum(" --> " in line for line in lines) == 9, "six with one need, five has two, two outputs"
    ids = {match[1]: match[2] for line in lines if (match := re.match(r' +(n\d+)\W+"(\w+)', line))}
    wires = {(ids[match[1]], ids[match[2]]) for line in lines if (match := re.match(r" +(n\d+) --> (n\d+)$", line))}
    assert {("a", "one"), ("three", "five"), ("four", "five"), ("two", "six")} <= wires


def test_an_svg_is_well_formed_and_runs_from_left_to_right() -> None:
    root = ElementTree.fromstring(svg(compiled(SIX)))
    words = [each.text for each in root.iter(f"{SVG}text")]
    assert {"a", "one", "five", "shout", "output"} <= set(words)
    assert len(words) == 2 * 10, "two inputs, six nodes, two outputs"
    boxes = [each for each in root.iter(f"{SVG}rect") if each.get("rx")]
    places = dict(zip(words[::2], boxes, strict=True))
    left = {name: float(box.get("x", "")) for name, box in places.items()}
    assert left["a"] < left["one"] < left["three"] < left["five"]
    assert len({(box.get("x"), box.get("y")) for box in boxes}) == 10, "none covers another"
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    assert all(float(box.get("x", "")) + float(box.get("width", "")) <= width for box in boxes)
    assert all(float(box.get("y", "")) + float(box.get("height", "")) <= height for box in boxes)


def test_what_a_node_does_is_noted() -> None:
    drawn = mermaid(compiled(
        "inputs:\n  words: {type: text, list: true}\n  n: int\nnodes:\n"
        "  loud: {use: shout, map: '${words}', when: '${n > 1}', inputs: {text: '${item}'}}\n"
        "  some: {use: paint, repeat: 2}\n  first: {pick: '${some}', by: [1, 2]}\noutputs: {out: '${loud}'}\n"
    ))  # fmt: skip
    assert '["loud<br/>shout, map, when"]' in drawn
    assert '["some<br/>paint, repeat"]' in drawn
    assert '{{"first<br/>pick"}}' in drawn


@given(st.text())
def test_no_text_acts_in_a_mermaid_label(text: str) -> None:
    assert not set(_plain(text)) & set("\"'<>[]{}()|&#`;\n\\") - {";"}


@pytest.mark.parametrize("draw", [mermaid, svg])
def test_a_sub_workflow_is_drawn_with_its_nodes(draw, write, host) -> None:
    write(SIX, "six.yaml")
    sub = "{workflow: six.yaml, inputs: {a: '${w}', b: x}}"
    text = f"inputs: {{w: text}}\nnodes:\n  sub: {sub}\noutputs: {{o: '${{sub.five}}'}}\n"
    drawn = draw(host.workflow(write(text)))
    assert "sub/three" in drawn
    assert "passed on" in drawn
