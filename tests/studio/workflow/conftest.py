"""A host with the generators of `flow_plugin.py`, and workflows compiled without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import studio
from studio.workflow import Graph
from studio.workflow.check import compile_document
from studio.workflow.document import parse

from . import flow_plugin

GENERATORS = {each.name: each for each in flow_plugin.studio_generators()}
SIX = """
name: six
inputs:
  a: {type: text, help: "one"}
  b: {type: text, help: "two"}
nodes:
  one: {use: shout, inputs: {text: "${a}"}}
  two: {use: shout, inputs: {text: "${b}"}}
  three: {use: shout, inputs: {text: "${one} and more"}}
  four: {use: shout, inputs: {text: "${two} and more"}}
  five: {use: shout, inputs: {text: "${three}, ${four}"}}
  six: {use: shout, inputs: {text: "${two}!"}}
outputs:
  five: ${five}
  six: ${six}
"""

Write = Callable[..., Path]


@pytest.fixture
def host(own_home: Path) -> Iterator[studio.Studio]:
    with studio.Studio(device="cpu", plugins=[Path(flow_plugin.__file__)]) as host:
        yield host


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a workflow file."""

    def call(text: str, name: str = "flow.yaml") -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
        return tmp_path / name

    return call


def compiled(text: str, file: str = "flow.yaml") -> Graph:
    """The graph of a file's text, with the generators of `flow_plugin.py`."""
    return compile_document(parse(text, file), GENERATORS)


def states(result: studio.FlowResult) -> dict[str, str]:
    """The nodes that run something; an output stands behind a dot."""
    return {name: report.state for name, report in result.nodes.items() if not name.startswith(".")}
