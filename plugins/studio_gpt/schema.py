"""Check an untrusted JSON Schema before it is compiled: its references, its size, and whether any finite value is
valid.

The compiler (llguidance) detects a `$ref` cycle only at the first token, follows references until its stack overflows,
and supports `oneOf` only if it sees that the branches exclude each other. So cycles, schemas without a finite valid
value and schemas that are too large are rejected here with their location, and `oneOf` is rewritten as `anyOf` where
the branches are disjoint. Loads no torch.

Specification: https://json-schema.org/draft/2020-12/json-schema-core

Try it: ``checked('{"oneOf": [{"type": "null"}, {"type": "integer"}]}')``
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from studio.errors import InputError

FIELD = "json_schema"
MOST_CHARACTERS = 256 << 10
MOST_DEPTH = 800  # nesting, with references followed; the compiler's stack overflowed between 1200 and 2400
MOST_PROPERTIES = 2000  # in total; the compiler's time grows quadratically
MOST_WAYS = 1024  # combinations of alternatives under `allOf`; the compiler tries each
SUPPORTED = (
    "supported: type, enum, const, $ref, $defs, anyOf, allOf, oneOf (branches that exclude each other), properties,"
    " required, additionalProperties, patternProperties, minProperties, maxProperties, items, prefixItems, minItems,"
    " maxItems, minLength, maxLength, pattern, format, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf"
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_ONES = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_HERE = ("anyOf", "oneOf", "allOf")  # subschemas that apply to the same value as their parent
_TYPES = frozenset({"null", "boolean", "object", "array", "number", "string"})

Schema = Mapping[str, Any] | bool


def checked(schema: Mapping[str, Any] | bool | str) -> str:
    """A checked schema as JSON text for the compiler, in its own order. Raises InputError (`json_schema`)."""
    meant, text = _read(schema)
    try:
        root = _Root(meant)
        root.check()
        return json.dumps(root.rewritten(meant)) if '"oneOf"' in text else text
    except RecursionError:
        raise refused("has a `oneOf` whose branches are nested too deeply to compare", "use `anyOf`") from None
    except (TypeError, AttributeError) as error:
        raise refused(f"is not a JSON Schema: {error}") from None


def _read(schema: Mapping[str, Any] | bool | str) -> tuple[dict[str, Any], str]:
    try:
        meant = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(meant, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise refused(f"is not JSON: {error}") from None
    if meant is True:
        return {}, "{}"  # any JSON value: the two are equivalent
    if not isinstance(meant, dict):
        raise refused(f"is {text[:60]}; a JSON Schema must be an object, or true")
    if len(text) > MOST_CHARACTERS:
        raise refused(f"has {len(text):,} characters; the maximum is {MOST_CHARACTERS:,}")
    return meant, text


def refused(why: str, hint: str | None = None) -> InputError:
    """The error for a rejected schema."""
    return InputError(FIELD, f"`{FIELD}` {why}", hint=hint)


def _children(schema: Schema) -> Iterator[tuple[str, Any]]:
    """The direct subschemas of a schema, with their locations (JSON pointers from it)."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in _MAPS and isinstance(value, Mapping):
                yield from ((f"/{key}/{_escaped(name)}", each) for name, each in value.items())
            elif key in _LISTS and isinstance(value, list):
                yield from ((f"/{key}/{number}", each) for number, each in enumerate(value))
            elif key in _ONES and isinstance(value, Mapping | bool):
                yield f"/{key}", value


def _at(whole: Any, place: str) -> Any:
    """The schema at a JSON pointer (RFC 6901). Raises InputError if there is none."""
    found = whole
    for name in place.split("/")[1:]:
        key = name.replace("~1", "/").replace("~0", "~")
        inside: Any = dict(enumerate(found)) if isinstance(found, list) else found
        found = inside.get(int(key) if isinstance(found, list) and key.isdecimal() else key) if inside else None
        if not isinstance(found, Mapping | list | bool):
            break
    if not isinstance(found, Mapping | bool):
        raise refused(f"refers to `{place[:80]}`, which is not a schema")
    return found


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class _Root:
    """A root schema and all its subschemas by location (``#/properties/a``).

    Raises InputError for a reference to anything but a location within it.
    """

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self.places: dict[str, Schema] = {}
        todo: list[tuple[str, Any]] = [("#", whole)]
        while todo:
            place, schema = todo.pop()
            self.places.pop(place, None)  # subschemas come behind their parent
            self.places[place] = schema
            todo += [(place + more, each) for more, each in _children(schema)]
            target = self.target(schema)
            if target is not None and target not in self.places:
                todo.insert(0, (target, _at(whole, target)))

    def target(self, schema: Schema) -> str | None:
        """The location that a schema refers to, or None."""
        ref = schema.get("$ref") if isinstance(schema, Mapping) else None
        if ref is None:
            return None
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise refused(
                f"has the reference {json.dumps(ref)[:80]}", "refer to a location within the schema: `#/$defs/…`"
            )
        return unquote(ref).rstrip("/")

    def here(self, place: str) -> list[str]:
        """The locations of subschemas that apply to the same value as the one at `place`."""
        schema = self.places[place]
        found = [place + more for more, _ in _children(schema) if more.split("/")[1] in _HERE]
        target = self.target(schema)
        return found if target is None else [*found, target]

    def check(self) -> None:
        """Raise InputError for a schema that is too large, has a cycle, or has no finite valid value."""
        count = sum(len(each.get("properties", ())) for each in self.places.values() if isinstance(each, Mapping))
        if count > MOST_PROPERTIES:
            raise refused(f"has {count:,} properties; the maximum is {MOST_PROPERTIES:,}")
        depth = self._depth()
        if depth > MOST_DEPTH:
            raise refused(f"has {depth:,} levels of nesting; the maximum is {MOST_DEPTH}")
        ways: dict[str, int] = {}
        for place in self._inside_out():
            ways[place] = self._ways(place, ways)
            if ways[place] > MOST_WAYS:
                raise refused(
                    f"has too many combinations of alternatives at `{place[:60]}`; the maximum is {MOST_WAYS:,}"
                )
        if "#" not in self._finite():
            raise refused(
                "has no finite valid value: a required property contains itself", "make the reference optional"
            )

    def _depth(self) -> int:
        """An upper bound of the nesting depth; each reference target is counted once."""
        height: dict[str, int] = {}
        for place in reversed(self.places):  # subschemas come behind their parents
            inner = (height[place + more] for more, _ in _children(self.places[place])
                     if more.split("/")[1] not in ("$defs", "definitions"))  # fmt: skip
            height[place] = 1 + max(inner, default=0)
        targets = {each for each in map(self.target, self.places.values()) if each is not None}
        return sum(height[each] for each in {"#", *targets})

    def _inside_out(self) -> list[str]:
        """All locations, each after the subschemas that apply to its value. Raises InputError for a cycle of these."""
        done: dict[str, None] = {}
        for start in self.places:
            path: list[str] = []
            todo = [(start, False)]
            while todo:
                place, left = todo.pop()
                if left:
                    done[path.pop()] = None
                elif place in path:
                    circle = " -> ".join([*path[path.index(place) :], place][:5])
                    raise refused(f"has a reference cycle: {circle[:200]}", "end it with a type")
                elif place not in done:
                    path.append(place)
                    todo += [(place, True), *((each, False) for each in self.here(place))]
        return [*done]

    def _ways(self, place: str, known: Mapping[str, int]) -> int:
        """The number of combinations of alternatives that the compiler tries for one value."""
        total, here = 1, self.here(place)
        for name in ("anyOf", "oneOf"):
            total *= max(1, sum(known[each] for each in here if each.startswith(f"{place}/{name}/")))
        for each in here:
            if not each.startswith((f"{place}/anyOf/", f"{place}/oneOf/")):
                total *= known[each]
        return total

    def _finite(self) -> set[str]:
        """The locations of schemas with a finite valid value, as a least fixed point."""
        found: set[str] = set()
        left, before = [*self.places], 0
        while len(left) != before:
            before = len(left)
            for place in reversed(left):
                if self._fits(place, found):
                    found.add(place)
            left = [place for place in reversed(left) if place not in found]  # alternately from either end
        return found

    def _fits(self, place: str, found: set[str]) -> bool:
        schema = self.places[place]
        if isinstance(schema, bool):
            return schema
        target = self.target(schema)
        inner = {name: [f"{place}/{name}/{i}" for i, _ in enumerate(schema.get(name) or [])] for name in _HERE}
        if target is not None and target not in found:
            return False
        if not all(each in found for each in inner["allOf"]):
            return False
        if any(inner[name] and not found & {*inner[name]} for name in ("anyOf", "oneOf")):
            return False
        if "enum" in schema or "const" in schema:
            return True
        kinds = schema.get("type", ())
        fits = {"object": self._object_fits, "array": self._array_fits}
        listed = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else ()
        return not listed or any(fits[kind](place, schema, found) if kind in fits else True for kind in listed)

    def _object_fits(self, place: str, schema: Mapping[str, Any], found: set[str]) -> bool:
        known, names = schema.get("properties") or {}, schema.get("required") or []
        needed = [f"{place}/properties/{_escaped(name)}" for name in names if isinstance(name, str) and name in known]
        return all(each in found for each in needed)

    def _array_fits(self, place: str, schema: Mapping[str, Any], found: set[str]) -> bool:
        least, first = schema.get("minItems", 0), schema.get("prefixItems") or []
        if not isinstance(least, int | float) or least <= 0:
            return True
        needed = [f"{place}/prefixItems/{i}" for i in range(min(len(first), int(least)))]
        if least > len(first) and isinstance(schema.get("items"), Mapping | bool):
            needed.append(f"{place}/items")
        return all(each in found for each in needed)

    def rewritten(self, schema: Any) -> Any:
        """The schema with `oneOf` as `anyOf`. Raises InputError if the branches may not exclude each other."""
        if not isinstance(schema, Mapping):
            return schema
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _MAPS and isinstance(value, Mapping):
                made[key] = {name: self.rewritten(each) for name, each in value.items()}
            elif key in _LISTS and isinstance(value, list):
                made[key] = [self.rewritten(each) for each in value]
            else:
                made[key] = self.rewritten(value) if key in _ONES else value
        branches = made.pop("oneOf", None)
        if not isinstance(branches, list):
            return schema if branches is not None else made
        for second, one in enumerate(branches):
            for first in range(second):
                if not self.disjoint(branches[first], one):
                    why = f"has a `oneOf` whose branches {first} and {second} may both be valid for a value"
                    raise refused(why, "use `anyOf`, or give each branch a required property with its own `const`")
        taken = {"allOf": [*made.get("allOf", ()), {"anyOf": branches}]} if "anyOf" in made else {"anyOf": branches}
        return {**made, **taken}

    def disjoint(self, one: Schema, two: Schema) -> bool:
        """Whether it is certain that no value is valid for both schemas."""
        one, two = self._followed(one), self._followed(two)
        if not self._types(one) & self._types(two):
            return True
        if isinstance(one, bool) or isinstance(two, bool):
            return one is False or two is False
        values = [_values(each) for each in (one, two)]
        if values[0] is not None and values[1] is not None:
            return not values[0] & values[1]
        if self._types(one) | self._types(two) == {"number"}:
            return _above(one, two) or _above(two, one)
        if self._types(one) | self._types(two) != {"object"}:
            return False
        known = [each.get("properties") or {} for each in (one, two)]
        both = {*one.get("required", ())} & {*two.get("required", ())} & known[0].keys() & known[1].keys()
        return any(self.disjoint(known[0][name], known[1][name]) for name in both)

    def _followed(self, schema: Schema) -> Schema:
        while (target := self.target(schema)) is not None and isinstance(schema, Mapping) and len(schema) == 1:
            schema = self.places[target]
        return schema

    def _types(self, schema: Schema) -> frozenset[str]:
        """Types of the values that may be valid."""
        if not isinstance(schema, Mapping):
            return _TYPES if schema else frozenset()
        if (values := _values(schema)) is not None:
            return frozenset(_type_of(json.loads(each)) for each in values)
        kinds = schema.get("type", [*_TYPES])
        found = {"number" if each == "integer" else each for each in ([kinds] if isinstance(kinds, str) else kinds)}
        if (target := self.target(schema)) is not None:
            found &= self._types(self.places[target])
        for each in schema.get("allOf") or ():
            found &= self._types(each)
        for name in ("anyOf", "oneOf"):
            if schema.get(name):
                found &= frozenset[str]().union(*(self._types(each) for each in schema[name]))
        return frozenset(found) & _TYPES


def _values(schema: Schema) -> set[str] | None:
    """The values of an `enum` or `const`, as JSON text; None if it has neither."""
    if not isinstance(schema, Mapping) or not ({"enum", "const"} & schema.keys()):
        return None
    listed = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
    return {json.dumps(_plain(each), sort_keys=True) for each in listed}


def _plain(value: Any) -> Any:
    """A value with 1.0 as 1, which are equal in JSON Schema."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _type_of(value: Any) -> str:
    kinds = {bool: "boolean", type(None): "null", str: "string", dict: "object", list: "array"}
    return kinds.get(type(value), "number")


def _above(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether each valid number of the first is larger than each of the second."""
    low = max((one[key] for key in ("minimum", "exclusiveMinimum") if _type_of(one.get(key)) == "number"), default=None)
    top = min((two[key] for key in ("maximum", "exclusiveMaximum") if _type_of(two.get(key)) == "number"), default=None)
    return low is not None and top is not None and low > top
