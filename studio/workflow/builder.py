"""Building a workflow in Python: `Workflow` builds the same document as a YAML file, with the same checks.

A handle is the future value of a node. It is passed to other nodes as it is, or inserted into text:
``f"{story}, at night"``. Problems name the line of the Python file.

Try it::

    flow = studio.Workflow()
    prompt = flow.input("prompt", "text")
    pictures = flow.add("image", prompt=prompt, repeat=4)
    flow.output("pictures", pictures)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import UsageError
from studio.generator import Generator
from studio.media import Media
from studio.plugins import PluginReport
from studio.workflow.check import compile_document
from studio.workflow.document import Value
from studio.workflow.graph import Graph
from studio.workflow.problems import Place


@dataclass(frozen=True)
class Handle:
    """The future value of a node. As text it is its reference, ``${name}``; attributes name parts of the value."""

    reference: str

    def __getattr__(self, name: str) -> Handle:
        if name.startswith("_"):
            raise AttributeError(name)
        return Handle(f"{self.reference}.{name}")

    def __getitem__(self, index: int) -> str:
        """An item of a list, as a reference for text."""
        return f"${{{self.reference}[{index}]}}"

    def __str__(self) -> str:
        return f"${{{self.reference}}}"

    def __format__(self, _: str) -> str:
        return str(self)


class Workflow:
    """Collects inputs, nodes and outputs; `compile` checks them all at once."""

    item, index, number = Handle("item"), Handle("index"), Handle("number")

    def __init__(self, name: str = "workflow", about: str = "") -> None:
        self.name, self.about = name, about
        self._inputs: dict[str, Value] = {}
        self._nodes: dict[str, Value] = {}
        self._outputs: dict[str, Value] = {}
        self._needed: dict[str, Value] = {}

    def needs(self, plugin: str, version: str | None = None) -> None:
        """Require a plugin, by its distribution's name, in a version such as ``">=0.1"``."""
        self._needed[plugin] = _value(version, _caller())

    def input(self, name: str, type: str, **settings: Any) -> Handle:
        """Declare an input: `list`, `default`, `help`, `ge`, `le` and `choices` as in a file."""
        place = _caller()
        self._inputs[name] = _value({"type": type, **settings}, place)
        return Handle(name)

    def add(
        self, generator: str, inputs: Mapping[str, Any] | None = None, /, *, name: str | None = None, seed: Any = None,
        map: Any = None, repeat: Any = None, when: Any = None, **more: Any,
    ) -> Handle:  # fmt: skip
        """Add a generator's node and return its handle; `name` names it (default: the generator and a number).

        Inputs are given by keyword, or in `inputs` if they have the name of an option, such as `name`.
        """
        settings = {"seed": seed, "map": map, "repeat": repeat, "when": when}
        node = {"use": generator, "inputs": {**(inputs or {}), **more}}
        node |= {key: each for key, each in settings.items() if each is not None}
        return self._put(name, generator, node, _caller())

    def pick(self, source: Any, *, by: Any, best: Any = None, name: str | None = None, when: Any = None) -> Handle:
        """Choose the item of a list with the highest score; with `best`, a list of that many items."""
        node = {"pick": source, "by": by, "best": best, "when": when}
        return self._put(name, "pick", {key: each for key, each in node.items() if each is not None}, _caller())

    def use(
        self, file: str, inputs: Mapping[str, Any] | None = None, /, *, name: str | None = None, **more: Any
    ) -> Handle:
        """Add a sub-workflow; its outputs are attributes of the handle. The file must be in the working folder.

        Inputs are given as in `add`.
        """
        return self._put(name, Path(file).stem, {"workflow": file, "inputs": {**(inputs or {}), **more}}, _caller())

    def output(self, name: str, value: Handle) -> None:
        """Declare an output."""
        self._outputs[name] = _value(value, _caller())

    def compile(self, generators: Mapping[str, Generator], plugins: Sequence[PluginReport] = ()) -> Graph:
        """Check everything. Raises WorkflowError with every problem."""
        place = Place("<python>", 1)
        sections = {"inputs": self._inputs, "nodes": self._nodes, "outputs": self._outputs}
        root = {key: Value(each, place) for key, each in sections.items()}
        root |= {"name": Value(self.name, place), "about": Value(self.about, place)}
        if self._needed:
            root["plugins"] = Value(self._needed, place)
        return compile_document(Value(root, place), generators, plugins=plugins)

    def _put(self, name: str | None, stem: str, node: dict[str, Any], place: Place) -> Handle:
        base = stem.replace("-", "_")
        if name is None:
            name = next(each for n in range(1, len(self._nodes) + 2) if (each := f"{base}{n}") not in self._nodes)
        self._nodes[name] = _value(node, place)
        return Handle(name)


def _value(data: Any, place: Place) -> Value:
    if isinstance(data, Handle | Path):
        return Value(str(data), place)
    if isinstance(data, Mapping):
        return Value({str(key): _value(each, place) for key, each in data.items()}, place)
    if isinstance(data, list | tuple):
        return Value([_value(each, place) for each in data], place)
    if data is None or isinstance(data, str | int | float | bool | Media):
        return Value(data, place)
    hint = "give text, numbers, true or false, media, handles, or lists and mappings of these"
    raise UsageError(f"{place}: workflows cannot hold values of type `{type(data).__name__}`", hint=hint)


def _caller() -> Place:
    """The line of the caller outside this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return Place(Path(frame.f_code.co_filename).name, frame.f_lineno)
