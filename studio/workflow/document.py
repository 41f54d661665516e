"""A YAML parser for untrusted files: a tree of values with their line numbers.

Only plain data is read: text, numbers, true, false, null, lists and mappings. Anchors, aliases, tags, duplicate keys
and several documents are rejected, and size, depth and count are limited before anything is built. Words such as `yes`
and `on` are text (YAML 1.2's core schema).

Try it: ``python -c "from studio.workflow.document import read; print(read('pipelines/best.yaml').data)"``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import MediaError, WorkflowError
from studio.files import read_limited
from studio.workflow.problems import Place, Problems

MAX_BYTES = 1 << 20
MAX_DEPTH = 12
MAX_VALUES = 100_000
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """Data and its place: `data` is text, int, float, bool, None, media, ``list[Value]`` or ``dict[str, Value]``.

    In a mapping a value's place is its key's.
    """

    data: Any
    place: Place

    def get(self, key: str) -> Value | None:
        """The value of a key, where this is a mapping that has it."""
        return self.data.get(key) if isinstance(self.data, dict) else None


def read(path: Path | str) -> Value:
    """Read a workflow file. Raises WorkflowError, which names file and line."""
    start = Place(str(path), 1)
    try:
        data = read_limited(path, MAX_BYTES)
    except MediaError as error:
        hint = "name a YAML file, or a workflow of `studio run --list`" if not Path(path).is_file() else None
        raise WorkflowError([(f"{start.file}: {error.message}", hint)]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WorkflowError([(f"{start.file}:{line}: not UTF-8 text", "save the file as UTF-8")]) from None
    return parse(text, start.file)


def parse(text: str, file: str) -> Value:
    """Parse YAML text. Raises WorkflowError with every problem found."""
    import yaml

    problems = Problems()
    try:
        root = _TreeBuilder(_events(text), file, problems).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = Place(file, mark.line + 1 if mark else 1)
        problems.add(place, f"not YAML: {what}", "quote text that contains `: ` or `#`, or starts with punctuation")
        root = Value(None, place)
    problems.raise_if_any()
    return root


def _events(text: str) -> Iterator[Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it was built, is ten times as fast
    return iter(yaml.parse(text, Loader=loader))


class _TreeBuilder:
    """Builds the tree from the parser's events, so that limits are checked before anything is built."""

    def __init__(self, events: Iterator[Any], file: str, problems: Problems) -> None:
        self._events, self._file, self._problems = events, file, problems
        self._count = 0

    def document(self) -> Value:
        """The one document of the file."""
        name, _ = "", next(self._events)
        event = next(self._events)
        if type(event).__name__ == "StreamEndEvent":
            return self._refuse(event, "the file is empty")
        root = self._value(next(self._events), 0)
        next(self._events)
        if (name := type(event := next(self._events)).__name__) != "StreamEndEvent":
            assert name == "DocumentStartEvent"
            self._refuse(event, "the file has more than one document", stop=False)
        return root

    def _place(self, event: Any) -> Place:
        return Place(self._file, event.start_mark.line + 1)

    def _refuse(self, event: Any, message: str, hint: str | None = None, *, stop: bool = True) -> Value:
        self._problems.add(self._place(event), message, hint)
        if stop:
            self._problems.raise_if_any()
        return Value(None, self._place(event))

    def _value(self, event: Any, depth: int) -> Value:
        self._count += 1
        if self._count > MAX_VALUES:
            self._refuse(event, f"the file has more than {MAX_VALUES:,} values, the limit")
        if depth > MAX_DEPTH:
            self._refuse(event, f"values are nested more than {MAX_DEPTH} deep, the limit")
        if getattr(event, "anchor", None):
            kind = "an alias" if type(event).__name__ == "AliasEvent" else "an anchor"
            self._refuse(event, f"`{event.anchor}` is {kind}, which workflows do not allow", "write the value out")
        if getattr(event, "tag", None) not in (None, "!"):
            self._refuse(event, f"`{event.tag[:60]}` is a tag, which workflows do not allow", "write plain data")
        match type(event).__name__:
            case "ScalarEvent":
                return Value(_scalar(event), self._place(event))
            case "SequenceStartEvent":
                return Value(list(self._items(depth)), self._place(event))
            case _:
                return Value(self._mapping(depth), self._place(event))

    def _items(self, depth: int) -> Iterator[Value]:
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            yield self._value(event, depth + 1)

    def _mapping(self, depth: int) -> dict[str, Value]:
        made: dict[str, Value] = {}
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            key = self._value(event, depth + 1)
            value = self._value(next(self._events), depth + 1)
            if isinstance(key.data, list | dict):
                self._refuse(event, "a key must be a word", "quote text that starts with `{` or `[`")
            name = event.value
            if name in made:
                self._refuse(event, f"duplicate key `{name[:60]}`; the first is in line {made[name].place.line}",
                             stop=False)  # fmt: skip
                continue
            made[name] = Value(value.data, key.place)
        return made


def _scalar(event: Any) -> Any:
    """YAML 1.2's core schema, without octal, hexadecimal, infinity and NaN."""
    text: str = event.value
    if not event.implicit[0]:  # quoted, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
