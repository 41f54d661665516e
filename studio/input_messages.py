"""Messages about inputs: the allowed values of a field in words, and why a value is not valid.

Messages have the value, the allowed range and the remedy; pydantic's own texts are not shown.

Try it: ``pytest tests/studio/test_inputs.py``
"""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from studio.errors import InputError
from studio.media import Media, Text

_VERBS = {"is", "has", "adds", "gives", "needs", "lacks"}  # first words of a validator's message about the value
_SHOWN = 60  # characters of a rejected value that a message shows


def unwrap(annotation: Any) -> tuple[Any, bool, tuple[Any, ...]]:
    """Strip Optional, list, Annotated and Literal: (type, whether it is a list, literal choices)."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return unwrap(arguments[0])
    if origin in (Union, types.UnionType):
        rest = [each for each in arguments if each is not type(None)]
        return unwrap(rest[0]) if len(rest) == 1 else (None, False, ())
    if origin in (list, Sequence) or (origin is tuple and len(arguments) == 2 and arguments[1] is ...):
        kind, nested, literal = unwrap(arguments[0])
        return (None if nested else kind), not nested, literal
    if origin is Literal:
        return type(arguments[0]), False, tuple(arguments)
    return annotation, False, ()


def choices_of(info: FieldInfo) -> list[Any]:
    """The choices of a field; empty if any value is allowed."""
    extra = info.json_schema_extra
    found = extra.get("enum") if isinstance(extra, dict) else None
    return found if isinstance(found, list) else []


def limit_of(info: FieldInfo, *names: str) -> float | None:
    """The first limit of these names among the constraints of the field, or of a list's items."""
    for each in (*info.metadata, *_of_items(info.annotation)):
        for name in names:
            if (limit := getattr(each, name, None)) is not None:
                return limit  # type: ignore[no-any-return]
    return None


def _of_items(annotation: Any) -> list[Any]:
    """The constraints of the items of a list such as ``list[Annotated[float, Field(ge=0)]]``."""
    items = [each for each in get_args(annotation) if get_origin(each) is Annotated]
    given = [each for item in items for each in get_args(item)[1:]]
    return [each for one in given for each in (one.metadata if isinstance(one, FieldInfo) else [one])]


def describe(info: FieldInfo) -> str:
    """Describe the allowed values of a field: "a whole number from 1 to 1000", "one of `a`, `b`"."""
    kind, multiple, literal = unwrap(info.annotation)
    if options := (literal or tuple(choices_of(info))):
        text = "one of " + ", ".join(f"`{option}`" for option in options)
    elif isinstance(kind, type) and issubclass(kind, Media):
        text = "text" if kind is Text else f"the path of a file with {kind.noun}"
    else:
        plain = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
        text = plain.get(kind, "a JSON value") + _range_words(info)
    if multiple:
        return f"a list{_length_words(info, '')}, each {text}"
    return text + _length_words(info, " characters")


def _range_words(info: FieldInfo) -> str:
    ge, gt, le, lt = (limit_of(info, name) for name in ("ge", "gt", "le", "lt"))
    low = f"from {_number(ge)}" if ge is not None else f"above {_number(gt)}" if gt is not None else ""
    high = f"up to {_number(le)}" if le is not None else f"below {_number(lt)}" if lt is not None else ""
    words = f" of at least {_number(ge)}"
    if ge is not None and le is not None:
        words = f" from {_number(ge)} to {_number(le)}"
    elif ge is None or high:
        joint = "" if not low or le is not None or not high else "to" if ge is not None else "and"
        words = "".join(f" {each}" for each in (low, joint, high) if each)
    if (step := limit_of(info, "multiple_of")) is not None:
        words += f", a multiple of {_number(step)}"
    return words


def _length_words(info: FieldInfo, of: str) -> str:
    """The allowed length of a text in characters, or of a list in items."""
    short, long = limit_of(info, "min_length"), limit_of(info, "max_length")
    if short is not None and long is not None:
        return f" of {_number(short)} to {_number(long)}{of}"
    if long is not None:
        return f" of at most {_number(long)}{of}"
    return f" of at least {_number(short)}{of}" if short is not None else ""


def _number(value: float | None) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def input_error(cls: type[BaseModel], error: ValidationError) -> InputError:
    """Join pydantic's errors into one line: each invalid input with its allowed values."""
    found = error.errors(include_url=False)
    lines = [problem(cls, each) for each in found]
    name = str(found[0]["loc"][0]) if found[0]["loc"] else ""
    info = cls.model_fields.get(name)
    hint = f"give `{name}`, {describe(info)}" if info and found[0]["type"] == "missing" else None
    return InputError(name, "; ".join(dict.fromkeys(lines)), hint=hint)


def problem(cls: type[BaseModel], found: Any) -> str:
    """What is wrong with one value, from pydantic's error."""
    name = str(found["loc"][0]) if found["loc"] else ""
    info = cls.model_fields.get(name)
    if found["type"] == "missing":
        return f"`{name}` is missing"
    if found["type"] == "string_unicode" and isinstance(found["input"], str):
        at, code = next((at, ord(each)) for at, each in enumerate(found["input"], 1) if 0xD800 <= ord(each) <= 0xDFFF)
        return f"`{name}` has a lone surrogate, U+{code:04X} at character {at}: remove it"
    if found["type"] in ("value_error", "assertion_error") and not (info and choices_of(info)):
        reason = str(found["ctx"]["error"]) if "error" in found.get("ctx", {}) else found["msg"]
        return f"`{name}` is {show(found['input'])}{_joined(reason)}" if name else reason
    if not info:
        return str(found["msg"])
    return f"`{name}` is {show(found['input'])}, but must be {describe(info)}"


def _joined(reason: str) -> str:
    """Join a validator's message to the value: "must be even", "is empty", or a sentence of its own."""
    first = reason.partition(" ")[0]
    return f", but {reason}" if first == "must" else f", which {reason}" if first in _VERBS else f": {reason}"


def show(value: Any) -> str:
    """A rejected value for a message, truncated; an array by its dtype and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype} {tuple(value.shape)}"
    text = repr(value)
    length = len(value) if isinstance(value, str) else len(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({length:,} characters)"
