"""Evaluating expressions while a workflow runs, and converting values to a generator's inputs.

Media are named by hash (`MediaRef`) and are read only where their content is needed: the text in a template, the scores
of a pick.

Try it: ``pytest tests/studio/workflow/test_resolve.py``
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from studio.errors import InputError, StudioError
from studio.inputs import Flag
from studio.media import Embedding, Image, Media, Text
from studio.recipe import MediaRef
from studio.store import Store
from studio.workflow.expressions import (
    MAX_LIST,
    MAX_TEXT,
    Condition,
    Expression,
    Listed,
    Literal,
    NameReference,
    Size,
    TextValue,
    Use,
)
from studio.workflow.graph import LOCAL, Node

_READ = 512  # texts, sizes and scores that are kept after reading


class Resolver:
    """Evaluates expressions; `values` is filled by the run."""

    def __init__(self, store: Store) -> None:
        self.values: dict[str, Any] = {}
        self._store = store
        self._read = lru_cache(_READ)(self._readable)

    def value(self, node: Node, expression: Expression, local: Mapping[str, Any]) -> Any:
        """Evaluate an expression to plain data, a MediaRef, or a list of them. Raises StudioError."""
        if isinstance(expression, Literal):
            return self.named(expression.value)
        if isinstance(expression, NameReference):
            return self._use(node, Use(expression.name, expression.attribute), local)
        if isinstance(expression, Listed):
            return [self.value(node, each, local) for each in expression.items]
        return expression.render(self._context(node, expression, local))

    def holds(self, node: Node) -> bool:
        """Whether the node's `when` is true."""
        when = node.when
        if when is None or isinstance(when, Literal):
            return when is None or bool(when.value)
        assert isinstance(when, Condition)
        return when.holds(self._context(node, when, {}))

    def whole(self, node: Node, name: str, expression: Expression, low: int, high: int) -> int:
        """A whole number from `low` to `high`. Raises InputError."""
        found = self.value(node, expression, {})
        if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
            raise InputError(name, f"`{name}` is {found!r}, but must be a whole number from {low} to {high}")
        return found

    def inputs(self, node: Node, local: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A generator's inputs as JSON, and the hashes of the media they were derived from."""
        assert node.generator is not None
        flags = {flag.name: flag for flag in node.generator.Inputs.flags()}
        made, parents = {}, []
        for name, expression in node.inputs.items():
            value = self.value(node, expression, local)
            made[name] = self._give(flags[name], value)
            parents += [each.sha256 for each in self._sources(node, expression, local)]
        return made, tuple(dict.fromkeys(parents))

    def lacking(self, node: Node) -> str | None:
        """The first input that needs at least one item and is an empty list, or None."""
        if node.generator is None or node.map is not None or node.repeat is not None:
            return None
        fields = node.generator.Inputs.model_fields
        for name, expression in node.inputs.items():
            if isinstance(expression, NameReference) and self.value(node, expression, {}) == []:
                shortest = (getattr(each, "min_length", None) for each in fields[name].metadata)
                if any(shortest):
                    return name
        return None

    def scores(self, value: Any) -> list[float]:
        """The scores of a pick."""
        if isinstance(value, MediaRef):
            return [float(each) for each in self._read(value)]
        return [float(each) for each in value]

    def named(self, value: Any) -> Any:
        """The value with media stored and replaced by their references."""
        if isinstance(value, list | tuple):
            return [self.named(each) for each in value]
        if isinstance(value, Media):
            self._store.put(value.attach(None, None))
            return value.ref
        return value

    def _named(self, name: str, local: Mapping[str, Any]) -> Any:
        """The value of a name, local to an execution or in the graph."""
        return local[name] if name in LOCAL and name in local else self.values[name]

    def _use(self, node: Node, use: Use, local: Mapping[str, Any]) -> Any:
        name, attribute = node.find(use)
        value = self._named(name, local)
        if attribute is None:
            return value
        seen = self._seen(value)
        return str(seen) if attribute == "text" else getattr(seen, attribute)

    def _context(self, node: Node, expression: Expression, local: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a template names, in the form it can read."""
        made: dict[str, Any] = {}
        for use in expression.uses:
            name, attribute = node.find(use)
            value = self._seen(self._named(name, local))
            if use.attribute and attribute is None:  # the output of a sub-workflow
                made.setdefault(use.name, {})[use.attribute] = value
            else:
                made[use.name] = value
        return made

    def _seen(self, value: Any) -> Any:
        """A value in the form a template can read: text, numbers, lists, sizes of images."""
        if isinstance(value, list):
            if len(value) > MAX_LIST:
                raise InputError(
                    "template", f"the list has {len(value):,} items; the limit in a template is {MAX_LIST:,}"
                )
            return [self._seen(each) for each in value]
        if isinstance(value, MediaRef):
            return self._read(value)
        if not isinstance(value, str):
            return value
        if len(value) > MAX_TEXT:
            raise InputError("template", f"text of {len(value):,} characters; the limit in a template is {MAX_TEXT:,}")
        return TextValue(value)

    def _readable(self, ref: MediaRef) -> Any:
        """Media in the form a template can read."""
        media = self._store.open(ref.sha256)
        if isinstance(media, Text):
            return self._seen(media.text)
        if isinstance(media, Embedding):
            return [float(each) for each in media.vector]
        return Size(*media.size) if isinstance(media, Image) else None

    def _give(self, flag: Flag, value: Any) -> Any:
        """A value in the form the generator's input accepts."""
        if flag.multiple and isinstance(value, list):
            return [self._one(flag, each) for each in value]
        return self._one(flag, value)

    def _one(self, flag: Flag, value: Any) -> Any:
        if flag.media is not None:
            if isinstance(value, str) and flag.media.kind == "text":
                value = self.named(Text(value))
            return value.model_dump() if isinstance(value, MediaRef) else value
        if isinstance(value, list):
            return [self._one(flag, each) for each in value]
        if isinstance(value, MediaRef):
            media = self._store.open(value.sha256)
            if not isinstance(media, Text):
                raise StudioError(f"`{flag.name}` does not accept {media.noun}")
            return media.text
        return value

    def _sources(self, node: Node, expression: Expression, local: Mapping[str, Any]) -> list[MediaRef]:
        """All media that an expression reads."""
        found: list[MediaRef] = []
        for use in expression.uses:
            name, _ = node.find(use)
            found += refs(self._named(name, local))
        return found


def refs(value: Any) -> list[MediaRef]:
    """The media in a value."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, MediaRef)]
