"""A workflow's inputs: their declarations in the file become an `Inputs` class, like a generator's.

Ranges, choices, errors and suggested names are therefore the same as everywhere else.

Try it: ``studio flow check best``
"""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from studio.inputs import Inputs, field
from studio.workflow.document import Value
from studio.workflow.ports import MEDIA, Port
from studio.workflow.problems import Problems

_KEYS = ("type", "list", "default", "help", "ge", "le", "choices")
_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, **MEDIA, "text": str}
MAX_GIVEN = 1000  # members of a list that is given to a workflow


def declare(root: Value, names: tuple[str, ...], problems: Problems) -> tuple[type[Inputs], dict[str, Port]]:
    """Create the class, and the port of each input; `root` is the value of `inputs:`, `names` are the valid names."""
    ports: dict[str, Port] = {}
    fields: dict[str, Any] = {}
    for name in names:
        if (made := _one(name, root.data[name], problems)) is not None:
            ports[name], fields[name] = made
    return create_model("WorkflowInputs", __base__=Inputs, **fields), ports


def _one(name: str, declared: Value, problems: Problems) -> tuple[Port, Any] | None:
    settings = declared if isinstance(declared.data, dict) else Value({"type": declared}, declared.place)
    for key, value in settings.data.items():
        if key not in _KEYS:
            problems.unknown(value.place, "setting of an input", key, _KEYS)
            return None
    kind = settings.get("type")
    if kind is None or not isinstance(kind.data, str) or kind.data not in _TYPES:
        if kind is not None and isinstance(kind.data, str):
            problems.unknown(kind.place, "type of input", kind.data, _TYPES)
        else:
            problems.add(declared.place, f"the input `{name}` has no type", f"known: {', '.join(_TYPES)}")
        return None
    many = settings.get("list")
    if many is not None and not isinstance(many.data, bool):
        problems.add(many.place, f"`list` is {many.data!r}, but must be true or false")
        return None
    port = Port(kind.data, bool(many and many.data))
    limits = _limits(name, port, settings, problems)
    return None if limits is None else (port, _field(port, settings, limits))


def _limits(name: str, port: Port, settings: Value, problems: Problems) -> dict[str, Any] | None:
    """`ge`, `le`, `choices` and `help`, where they are of the right kind."""
    made: dict[str, Any] = {"help": f"the workflow's `{name}`"}
    good = True
    for key in ("ge", "le", "help", "choices"):
        if (value := settings.get(key)) is None:
            continue
        data = [each.data for each in value.data] if isinstance(value.data, list) else value.data
        plain = isinstance(data, int | float) and not isinstance(data, bool)
        fits = {
            "help": isinstance(data, str),
            "choices": isinstance(data, list) and bool(data) and not any(isinstance(d, list | dict) for d in data),
        }.get(key, plain and port.kind in ("int", "float") and not port.many)
        if fits:
            made[key] = data
        else:
            asks = {"help": "text", "choices": "a list of values"}.get(key, "a number, for an input of numbers")
            problems.add(value.place, f"`{key}` of the input `{name}` must be {asks}")
            good = False
    if (default := settings.get("default")) is not None and not _fits(port, default):
        problems.add(default.place, f"the default of `{name}` must be {port}")
        good = False
    return made if good else None


def _fits(port: Port, default: Value) -> bool:
    if port.many:
        return isinstance(default.data, list) and all(_fits(Port(port.kind), each) for each in default.data)
    data = default.data
    if port.kind in ("int", "float"):
        return isinstance(data, int if port.kind == "int" else int | float) and not isinstance(data, bool)
    return isinstance(data, {"bool": bool, "text": str}.get(port.kind, ()))


def _field(port: Port, settings: Value, limits: dict[str, Any]) -> Any:
    kind: Any = _TYPES[port.kind]
    default = settings.get("default")
    if port.many:
        given = ... if default is None else [each.data for each in default.data]
        return (list[kind], field(given, max_length=MAX_GIVEN, **limits))
    return (kind, field(... if default is None else default.data, **limits))
