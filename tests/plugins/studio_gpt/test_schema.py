"""Schemas before they are compiled: what goes in a circle, never ends or is too large is refused by its place."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import InputError
from studio_gpt.constrain import Constraint
from studio_gpt.schema import SUPPORTED, checked
from studio_gpt.state import TextInputs

from .tiny_tokenizers import EOS, byte_level

NEXT = {"$ref": "#/$defs/node"}


def chain(count: int, link: dict[str, Any]) -> dict[str, Any]:
    """`count` definitions, each of which refers to the next one."""
    text = json.dumps(link)
    defs = {f"d{i}": json.loads(text.replace("NEXT", f"#/$defs/d{i + 1}")) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{count}": {"type": "null"}}}


@pytest.mark.parametrize(("schema", "words"), [
    ({"$ref": "#"}, "reference cycle: # -> #"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
     "#/$defs/a -> #/$defs/b -> #/$defs/a"),
    ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "# -> #/anyOf/1 -> #"),
    ({"properties": {"a/b": {"allOf": [{"$ref": "#/properties/a~1b"}]}}}, "reference cycle"),
    ({"$ref": "#/x/0", "x": [{"$ref": "#/y/z"}], "y": {"z": {"$ref": "#/x/0"}}}, "#/x/0 -> #/y/z -> #/x/0"),
    ({"$ref": "#/a", "a": {"properties": {"b": {"$ref": "#/a/properties"}}}}, ""),
    ({"$anchor": "a", "$ref": "#a"}, "has the reference \"#a\""),
    ({"$id": "http://a/b", "$ref": "http://a/b"}, "has the reference"),
    ({"items": {"$ref": "other.json#/a"}}, "has the reference"),
    ({"$ref": 5}, "has the reference 5"),
    ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "refers to `#/$defs/b`, which is not a schema"),
    ({"$ref": "#/title", "title": "a"}, "which is not a schema"),
    ({"$ref": "#/allOf/1", "allOf": [{}]}, "which is not a schema"),
    ({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, "no finite valid value"),
    ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "no finite valid value"),
    ({"type": "array", "minItems": 2, "prefixItems": [{"type": "null"}, {"$ref": "#"}]}, "no finite valid value"),
    ({"$ref": "#/$defs/a", "$defs": {
        "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        "b": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}, {"$ref": "#/$defs/a"}]}}},
     "no finite valid value"),
    (chain(2000, {"type": "array", "items": {"$ref": "NEXT"}}), "levels of nesting; the maximum is 800"),
    (chain(2000, {"$ref": "NEXT"}), "levels of nesting"),
    (chain(40, {"anyOf": [{"$ref": "NEXT"}, {"$ref": "NEXT"}]}), "too many combinations"),
    ({"allOf": [{"anyOf": [{"minimum": i}, {"maximum": i}]} for i in range(20)]}, "too many combinations"),
    ({"properties": {f"p{i}": {"type": "null"} for i in range(2001)}}, "has 2,001 properties; the maximum is 2,000"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "branches 0 and 1 may both be valid"),
    ({"oneOf": [{"type": "null"}, {"minimum": 1}, {"type": "string"}]}, "branches 0 and 1 may both be valid"),
    ({"properties": [1], "required": 5, "oneOf": 3, "type": 5, "anyOf": {"a": 1}}, ""),
], ids=lambda value: json.dumps(value)[:40])  # fmt: skip
def test_each_fault_is_told_before_any_model_is_loaded(schema: dict[str, Any], words: str) -> None:
    with suppress(InputError) if not words else pytest.raises(InputError) as caught:
        TextInputs.parse({"prompt": "a", "json_schema": json.dumps(schema)})
    if words and caught is not None:
        assert words in caught.value.message
        assert caught.value.field == "json_schema"


CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "n": {"type": "integer"}}, "required": ["kind", "n"]}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", "hound"]}}, "required": ["kind"]}
APART = [
    [{"type": "null"}, {"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    [{"const": 1, "title": "one"}, {"enum": [2, "x"]}, {"type": "boolean"}],
    [{"type": "integer", "maximum": 0}, {"type": "integer", "minimum": 1}],
    [{"allOf": [{"$ref": "#/$defs/cat"}, {"minProperties": 1}]}, {"type": ["string", "null"], "maxLength": 2}],
]


@pytest.mark.parametrize("branches", APART, ids=str)
def test_one_of_is_supported_where_its_branches_exclude_each_other(branches: list[Any]) -> None:
    schema = {"oneOf": branches, "$defs": {"cat": CAT, "dog": DOG}}
    compiled = json.loads(checked(schema))
    assert compiled["anyOf"] == branches
    assert Constraint.compile(schema, byte_level(), EOS).start().mask().any()


@given(kinds=st.lists(st.sampled_from([
    {"type": "integer"}, {"type": "number"}, {"type": "null"}, {"const": 1}, {"const": 1.0}, {"enum": ["a", 2]},
    {"type": ["string", "null"]}, {"minimum": 3}, {"type": "number", "minimum": 1}, {"type": "number", "maximum": 0.5},
    CAT, DOG, {"type": "object"}, {"const": [1]}, {"const": [1.0]}, True, False, {},
]), min_size=2, max_size=3), value=st.sampled_from([1, 1.0, 2, 0, 7, "a", "b", None, True, [], [1], {}, {"kind": "dog"},
                                                     {"kind": "cat", "n": 1}]))  # fmt: skip
def test_branches_that_are_taken_for_apart_have_no_value_in_common(kinds: list[Any], value: Any) -> None:
    try:
        checked({"oneOf": kinds})
    except InputError:
        return
    fitting = [each for each in kinds if jsonschema.Draft202012Validator(each).is_valid(value)]
    assert len(fitting) <= 1, "as `oneOf` and `anyOf` then mean the same"


@pytest.mark.parametrize("schema", [
    {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "array", "items": NEXT, "maxItems": 2}}},
    {"$ref": "#/$defs/node", "$defs": {"node": {"anyOf": [{"type": "null"}, {
        "type": "object", "properties": {"next": NEXT}, "required": ["next"], "additionalProperties": False}]}}},
    chain(300, {"type": "array", "items": {"$ref": "NEXT"}}),
    {"$ref": "#/properties/a%20b", "properties": {"a b": {"type": "null"}}},
], ids=lambda value: json.dumps(value)[:40])  # fmt: skip
def test_recursion_that_can_end_is_followed(schema: dict[str, Any]) -> None:
    assert Constraint.compile(schema, byte_level(), EOS).start().mask().any()


def test_what_is_not_supported_is_named_with_what_is() -> None:
    for key, value in {"not": {"type": "null"}, "uniqueItems": True, "if": {}, "contains": {}}.items():
        with pytest.raises(InputError, match=f"uses `{key}`.*not supported") as caught:
            Constraint.compile({key: value}, byte_level(), EOS)
        assert caught.value.hint == SUPPORTED
