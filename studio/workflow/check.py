"""Compiling a document to a graph: keys, names, generators and sub-workflows are checked, and all problems reported.

`compile_file` reads a file, `compile_document` takes what `Workflow` built in Python. Types are checked in
`type_check`. A workflow file can name files in its own folder and below, never outside. Nothing is run.

Try it: ``studio flow check best``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import InputError, MediaError, UsageError, WorkflowError
from studio.generator import Generator
from studio.inputs import Flag, Inputs
from studio.media import Media
from studio.plugins import PluginReport
from studio.workflow.declare import declare
from studio.workflow.document import Value, read
from studio.workflow.expressions import Expression, Listed, Literal, NameReference, compile_condition, compile_text
from studio.workflow.graph import LOCAL, Graph, Node
from studio.workflow.needs import check_plugins
from studio.workflow.ports import Port
from studio.workflow.problems import Place, Problems
from studio.workflow.shipped import find
from studio.workflow.type_check import check_types

MAX_NODES = 10_000
MAX_FILES = 8  # sub-workflows in sub-workflows
TOP = ("name", "about", "plugins", "inputs", "nodes", "outputs")
KEYS = {
    "use": ("use", "inputs", "seed", "map", "repeat", "when"),
    "pick": ("pick", "by", "best", "when"),
    "workflow": ("workflow", "inputs"),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")
_EMPTY = Value({}, Place("", 0))


def compile_file(path: Path | str, generators: Mapping[str, Generator], plugins: Sequence[PluginReport] = ()) -> Graph:
    """Compile a workflow file, or a built-in workflow by name. Raises WorkflowError with every problem, UnknownName."""
    file = find(path)
    return compile_document(read(file), generators, file.resolve(), plugins)


def compile_document(
    root: Value,
    generators: Mapping[str, Generator],
    path: Path | None = None,
    plugins: Sequence[PluginReport] = (),
) -> Graph:
    """Compile a document; `path` is its file, if it has one, and `plugins` are those found. Raises WorkflowError with
    every problem.
    """
    problems = Problems()
    checker = _Checker(generators, plugins, problems, (path or Path.cwd() / "-").parent)
    level = checker.level(root, "", (path,) if path else ())
    ports = check_types(checker.nodes, level.ports, problems)
    outputs = {name: checker.outputs[f".{name}"] for name in level.outputs if f".{name}" in checker.outputs}
    problems.raise_if_any()
    name = root.get("name")
    about = root.get("about")
    nodes = {each: checker.nodes[each] for each in ports if each in checker.nodes}
    return Graph(
        str(name.data) if name else (path.stem if path else "workflow"), str(about.data) if about else "",
        level.Inputs, level.ports, nodes, outputs, ports, path,
    )  # fmt: skip


@dataclass
class _Level:
    """One file: its inputs and outputs."""

    Inputs: type[Inputs]
    ports: dict[str, Port]
    outputs: tuple[str, ...]
    scope: dict[str, str] = field(default_factory=dict)


class _Checker:
    """Collects the nodes of all levels."""

    def __init__(
        self, generators: Mapping[str, Generator], plugins: Sequence[PluginReport], problems: Problems, folder: Path
    ) -> None:
        self.nodes: dict[str, Node] = {}
        self.outputs: dict[str, str] = {}
        self._generators, self._plugins, self._problems, self._folder = generators, plugins, problems, folder

    def level(self, root: Value, prefix: str, files: tuple[Path, ...]) -> _Level:
        """Compile a file; in the graph its names get the prefix `prefix`."""
        if not isinstance(root.data, dict):
            self._problems.add(
                root.place, "a workflow must be a mapping", f"with {', '.join(f'`{each}:`' for each in TOP)}"
            )
            return _Level(Inputs, {}, ())
        self._keys(root, "key of a workflow", TOP)
        check_plugins(root.get("plugins"), self._plugins, self._problems)
        for key in ("name", "about"):
            if (text := root.get(key)) and not isinstance(text.data, str):
                self._problems.add(text.place, f"`{key}` must be text")
        inputs, nodes, outputs = (self._section(root, key) for key in ("inputs", "nodes", "outputs"))
        if not nodes.data:
            self._problems.add(root.place, "the workflow has no nodes", "name at least one under `nodes:`")
        names = tuple(self._names(inputs, "an input", ()))
        kept = tuple(self._names(nodes, "a node", names))
        made, ports = declare(inputs, names, self._problems)
        level = _Level(made, ports, tuple(outputs.data), {name: prefix + name for name in names})
        subs = [
            name for name in kept if isinstance(nodes.data[name].data, dict) and "workflow" in nodes.data[name].data
        ]
        level.scope |= {name: prefix + name for name in kept if name not in subs}
        for name in subs:
            self._sub(nodes.data[name], prefix + name, level, files)
        for name in kept:
            if name not in subs:
                self._node(nodes.data[name], prefix + name, level)
        self._outputs(outputs, prefix, level)
        return level

    def _section(self, root: Value, key: str) -> Value:
        found = root.get(key)
        if found is None or found.data is None:
            return _EMPTY
        if not isinstance(found.data, dict):
            self._problems.add(found.place, f"`{key}` must be a mapping of names")
            return _EMPTY
        return found

    def _keys(self, value: Value, kind: str, known: tuple[str, ...]) -> bool:
        bad = [key for key in value.data if key not in known]
        for key in bad:
            self._problems.unknown(value.data[key].place, kind, key[:60], known)
        return not bad

    def _names(self, section: Value, kind: str, taken: Iterable[str]) -> Iterable[str]:
        for name, value in section.data.items():
            if not _NAME.fullmatch(name):
                self._problems.add(value.place, f"`{name[:60]}` is not a valid name for {kind}",
                                   "a name is a letter and up to 49 letters, digits and `_`")  # fmt: skip
            elif name in LOCAL or name == "loop":
                self._problems.add(value.place, f"`{name}` is reserved for `map`, `repeat` and loops")
            elif name in taken:
                self._problems.add(value.place, f"`{name}` is already the name of an input")
            else:
                yield name

    def _node(self, value: Value, name: str, level: _Level) -> None:
        """Compile a node that is not a sub-workflow."""
        if len(self.nodes) >= MAX_NODES:
            self._problems.add(value.place, f"the workflow has more than {MAX_NODES:,} nodes, the limit")
            self._problems.raise_if_any()
        kind = self._kind(value)
        if kind is None or not self._keys(value, f"key of a node with `{kind}`", KEYS[kind]):
            return
        settings: dict[str, Any] = {key: self._setting(value, key) for key in ("seed", "map", "repeat", "best")}
        settings["when"] = self._when(value)
        if settings["map"] is not None and settings["repeat"] is not None:
            self._problems.add(value.data["repeat"].place, "`map` and `repeat` cannot be combined", "use one of them")
        scope = level.scope
        if kind == "pick":
            inputs = {"from": self._expression(value.data["pick"]), "by": self._setting(value, "by")}
            if inputs["by"] is None:
                self._problems.add(value.place, "`pick` needs scores", "add `by: ${NODE}` with a node of `clip-rank`")
            wires = {key: each for key, each in inputs.items() if each is not None}
            self.nodes[name] = Node(name, value.place, "pick", wires, scope=scope, **settings)
            return
        generator = self._generator(value.data["use"])
        if generator is not None:
            wires = self._inputs(self._section(value, "inputs"), generator.Inputs.flags(), value.place, generator)
            self.nodes[name] = Node(name, value.place, "make", wires, generator, scope=scope, **settings)

    def _kind(self, value: Value) -> str | None:
        found = [key for key in KEYS if value.get(key) is not None]
        if not isinstance(value.data, dict) or len(found) != 1:
            what = "has both " + " and ".join(f"`{key}`" for key in found) if found else "has no action"
            self._problems.add(
                value.place, f"the node {what}", "use one of `use: GENERATOR`, `pick: ${LIST}`, `workflow: FILE`"
            )
            return None
        return found[0]

    def _generator(self, named: Value) -> Generator | None:
        if isinstance(named.data, str) and named.data in self._generators:
            return self._generators[named.data]
        self._problems.unknown(named.place, "generator", str(named.data)[:60], self._generators)
        return None

    def _setting(self, value: Value, key: str) -> Expression | None:
        found = value.get(key)
        return None if found is None else self._expression(found)

    def _when(self, value: Value) -> Expression | None:
        if (found := value.get("when")) is None:
            return None
        try:
            return compile_condition(found.data)
        except UsageError as error:
            self._problems.add(found.place, error.message, error.hint)
            return None

    def _expression(self, value: Value) -> Expression | None:
        """Parse a value; None, with a problem added, if it is invalid."""
        data = value.data
        if isinstance(data, list):
            items = [self._expression(each) for each in data]
            return None if None in items else Listed(tuple(each for each in items if each is not None))
        if not isinstance(data, str):
            return Literal(_plain(value))
        try:
            return compile_text(data)
        except UsageError as error:
            self._problems.add(value.place, error.message, error.hint)
            return None

    def _inputs(self, given: Value, flags: list[Flag], place: Place, generator: Generator) -> dict[str, Expression]:
        """The inputs of a generator's node: all known, none missing, literals within the declared ranges."""
        known = {flag.name: flag for flag in flags}
        given = self._main_names(given, flags)
        self._keys(given, f"input of `{generator.name}`", tuple(known))
        made: dict[str, Expression] = {}
        for name, value in given.data.items():
            if name in known and (expression := self._expression(value)) is not None:
                made[name] = self._literal(expression, value, known[name])
        for flag in flags:
            if flag.required and flag.name not in given.data:
                self._problems.add(place, f"`{generator.name}` needs `{flag.name}`", f"give `{flag.name}`: {flag.help}")
        plain = {name: each.value for name, each in made.items() if isinstance(each, Literal)}
        for name, message in generator.Inputs.problems(plain).items():
            if name in given.data:
                self._problems.add(given.data[name].place, message)
            elif len(plain) == len(given.data):  # rules over several inputs can be checked only if all are literals
                self._problems.add(place, message)
        return made

    def _main_names(self, given: Value, flags: list[Flag]) -> Value:
        """The inputs under their own names; values that are one text together, such as width and height, are joined."""
        made = dict(given.data)
        for flag in flags:
            for alias in flag.aliases:
                found = {name: value for name, value in made.items() if name in alias.names}
                try:
                    if alias.take(flag.name, made) is None:
                        continue
                except InputError as error:
                    self._problems.add(next(iter(found.values())).place, error.message, error.hint)
                    continue
                place = next(iter(found.values())).place
                plain = {name: value.data for name, value in found.items()}
                made[flag.name] = Value(alias.value(plain), place)
        return Value(made, given.place)

    def _literal(self, expression: Expression, value: Value, flag: Flag) -> Expression:
        """A literal input: a list of plain values becomes one literal, and media files are opened."""
        if isinstance(expression, Listed) and all(isinstance(each, Literal) for each in expression.items):
            expression = Literal([each.value for each in expression.items if isinstance(each, Literal)])
        if flag.media is None or flag.media.kind == "text":
            return expression
        if isinstance(expression, Literal):
            many = expression.value if isinstance(expression.value, list) else [expression.value]
            opened = [self._open(each, flag.media, value.place) for each in many]
            return Literal(opened if isinstance(expression.value, list) else opened[0])
        return expression

    def _open(self, named: Any, kind: type[Media], place: Place) -> Any:
        """Open a media file that the workflow names."""
        if not isinstance(named, str):
            return named
        try:
            return kind.open(self._inside(named))
        except (MediaError, UsageError) as error:
            self._problems.add(place, error.message, error.hint)
            self._problems.raise_if_any()  # else the check of the inputs would report the same file again
            raise

    def _inside(self, named: str) -> Path:
        path = (self._folder / named).resolve() if "\0" not in named else None
        if path is None or not path.is_relative_to(self._folder.resolve()):
            hint = f"only files in `{self._folder}` are allowed; give others as inputs: `-p name=FILE`"
            raise UsageError(f"`{named[:80]}` is outside the workflow's folder", hint=hint)
        return path

    def _sub(self, value: Value, name: str, level: _Level, files: tuple[Path, ...]) -> None:
        """Compile a sub-workflow: its inputs and outputs become `value` nodes, which pass values on."""
        if self._kind(value) is None or not self._keys(value, "key of a node with `workflow`", KEYS["workflow"]):
            return
        named = value.data["workflow"]
        try:
            path = self._inside(str(named.data))
            if path in files or len(files) >= MAX_FILES:
                raise UsageError(f"`{named.data}` includes itself, or is nested more than {MAX_FILES} deep")
            root = read(path)
        except WorkflowError as error:
            for message, hint in error.problems:
                self._problems.add(named.place, message, hint)
            return
        except UsageError as error:
            self._problems.add(named.place, error.message, error.hint)
            return
        inner = self.level(root, f"{name}/", (*files, path))
        given = self._section(value, "inputs")
        self._keys(given, f"input of `{path.name}`", tuple(inner.ports))
        plain: dict[str, Any] = {}
        for flag in inner.Inputs.flags():
            found = given.get(flag.name)
            if found is None and flag.required:
                self._problems.add(
                    value.place, f"`{path.name}` needs `{flag.name}`", f"give `{flag.name}`: {flag.help}"
                )
            expression = Literal(flag.default) if found is None else self._expression(found)
            if expression is not None:
                place = value.place if found is None else found.place
                scope = level.scope
                wire = {"value": self._literal(expression, found or value, flag)}
                if isinstance(made := wire["value"], Literal) and found is not None:
                    plain[flag.name] = made.value
                whole, port = f"{name}/{flag.name}", inner.ports[flag.name]
                self.nodes[whole] = Node(whole, place, "value", wire, port=port, scope=scope)
        for key, message in inner.Inputs.problems(plain).items():
            self._problems.add(given.data[key].place if key in given.data else value.place, message)
        short = name.rpartition("/")[2]
        level.scope |= {f"{short}.{output}": f"{name}.{output}" for output in inner.outputs}

    def _outputs(self, outputs: Value, prefix: str, level: _Level) -> None:
        if not outputs.data:
            self._problems.add(outputs.place if outputs.place.line else Place(self._file(level), 1),
                               "the workflow has no outputs", "list them under `outputs:`")  # fmt: skip
        for name in self._names(outputs, "an output", ()):
            value = outputs.data[name]
            expression = self._expression(value)
            whole = f"{prefix.removesuffix('/')}.{name}"
            if isinstance(expression, NameReference):
                self.nodes[whole] = Node(whole, value.place, "value", {"value": expression}, scope=level.scope)
                self.outputs[whole] = whole
            elif expression is not None:
                self._problems.add(value.place, f"the output `{name}` must be one reference", "such as `${picture}`")

    def _file(self, level: _Level) -> str:
        return next((node.place.file for node in self.nodes.values() if node.scope is level.scope), "workflow")


def _plain(value: Value) -> Any:
    """A value as plain data, for an input that accepts any JSON."""
    if isinstance(value.data, dict):
        return {key: _plain(each) for key, each in value.data.items()}
    return [_plain(each) for each in value.data] if isinstance(value.data, list) else value.data
