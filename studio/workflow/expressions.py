"""Expressions: the values in a workflow. They cannot run code, and their time and output are limited.

The syntax is ``${…}``. Text that is a single reference (``${story}``, ``${photo.width}``) passes the value on with its
type. Any other text with ``${…}`` is a Jinja template in Jinja's sandbox, restricted to names, comparisons, conditions,
one level of loops over lists, and a few filters. There are no calls, no arithmetic and no attributes except
`ATTRIBUTES`; source, output, loops, filters and time are limited.

Try it: ``python -c "from studio.workflow.expressions import compile_text as c; print(c('a \\${x | upper}').names)"``
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from studio.errors import InputError, UsageError

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

MAX_SOURCE = 10_000  # characters of a template
MAX_TEXT = 100_000  # characters of a text that a template reads, and of what it makes
MAX_LIST = 1_000  # members of a list that a template runs over, and of a map
MAX_FILTERS = 32
MAX_SECONDS = 2.0
ATTRIBUTES = {"text": ("text", "text"), "width": ("image", "int"), "height": ("image", "int")}
_LOOP = ("index", "index0", "first", "last", "length")
_WHOLE = re.compile(r"\$\{\s*([A-Za-z_][A-Za-z0-9_]*)(?:\.([A-Za-z_][A-Za-z0-9_]*))?\s*\}")
_CONDITION = re.compile(r"\$\{(.*)\}", re.S)


class TextValue(str):
    """Text in a template: ``${story}`` and ``${story.text}`` are the same."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The text."""
        return str(self)


@dataclass(frozen=True)
class Size:
    """An image in a template: only its width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Use:
    """A name in an expression: its attribute, whether it is printed, and whether a loop iterates over it."""

    name: str
    attribute: str | None = None
    printed: bool = False
    looped: bool = False


@dataclass(frozen=True)
class Literal:
    """A constant value."""

    value: Any
    uses: tuple[Use, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """None."""
        return frozenset()


@dataclass(frozen=True)
class NameReference:
    """A reference to another value, passed on with its type."""

    name: str
    attribute: str | None = None

    @property
    def uses(self) -> tuple[Use, ...]:
        """The one."""
        return (Use(self.name, self.attribute),)

    @property
    def names(self) -> frozenset[str]:
        """The one."""
        return frozenset((self.name,))


@dataclass(frozen=True)
class TextTemplate:
    """Text with inserted values."""

    source: str
    uses: tuple[Use, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names in the template."""
        return frozenset(each.name for each in self.uses)

    def render(self, values: Mapping[str, Any]) -> str:
        """Render the text. Raises InputError if rendering fails, takes too long, or the text is too long."""
        try:
            return _bounded(_compiled(self.source).generate(dict(values)))
        except InputError:
            raise
        except Exception as error:  # jinja lets through whatever a comparison or a filter raises
            raise InputError("template", f"the template `{_short(self.source)}` fails: {error}") from None


@dataclass(frozen=True)
class Condition(TextTemplate):
    """A template whose text is empty if the condition is false."""

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is true."""
        return bool(self.render(values))


@dataclass(frozen=True)
class Listed:
    """A literal list, each item an expression."""

    items: tuple[Expression, ...]

    @property
    def uses(self) -> tuple[Use, ...]:
        """Those of all items."""
        return tuple(use for each in self.items for use in each.uses)

    @property
    def names(self) -> frozenset[str]:
        """Those of all items."""
        return frozenset(use.name for use in self.uses)


Expression = Literal | NameReference | TextTemplate | Listed


def compile_text(text: str) -> Expression:
    """Parse text to a literal, a reference or a template. Raises UsageError."""
    if "${" not in text and "{%" not in text:
        return Literal(text)
    if found := _WHOLE.fullmatch(text.strip()):
        return NameReference(found[1], found[2])
    return TextTemplate(text, _check_template(text))


def compile_condition(value: Any) -> Condition | Literal:
    """Parse the value of `when`. Raises UsageError."""
    if isinstance(value, bool):
        return Literal(value)
    found = _CONDITION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise UsageError("`when` takes true, false or a condition", hint="such as `when: ${n > 1}`")
    source = "{% if " + found[1] + " %}1{% endif %}"
    return Condition(source, _check_template(source))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _bounded(chunks: Iterator[str]) -> str:
    made, length, end = [], 0, time.monotonic() + MAX_SECONDS
    for chunk in chunks:
        length += len(chunk)
        if length > MAX_TEXT:
            raise InputError("template", f"the template's output has more than {MAX_TEXT:,} characters, the limit")
        if time.monotonic() > end:
            raise InputError("template", f"the template takes more than {MAX_SECONDS:g} s, the limit")
        made.append(chunk)
    return "".join(made)


def _join(value: Any, by: str = ", ") -> str:
    members = [str(each) for each in value][: MAX_LIST + 1]
    if sum(map(len, members)) + len(by) * len(members) > MAX_TEXT:
        raise ValueError(f"`join` makes more than {MAX_TEXT:,} characters")
    return by.join(members)


def _round(value: Any, places: int = 0) -> str:
    return f"{float(value):.{min(max(int(places), 0), 12)}f}"


_FILTERS: dict[str, Callable[..., Any]] = {
    "upper": lambda text: str(text).upper(),
    "lower": lambda text: str(text).lower(),
    "capitalize": lambda text: str(text).capitalize(),
    "trim": lambda text: str(text).strip(),
    "first_line": lambda text: (str(text).strip().splitlines() or [""])[0],
    "lines": lambda text: [each.strip() for each in str(text).splitlines() if each.strip()][:MAX_LIST],
    "length": len,
    "first": lambda value: next(iter(value)),
    "last": lambda value: value[-1],
    "join": _join,
    "round": _round,
}


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(
        variable_start_string="${", variable_end_string="}", undefined=StrictUndefined, keep_trailing_newline=True,
        comment_start_string="{#-#}", comment_end_string="{#-#}end", optimized=False,
    )  # fmt: skip
    made.globals.clear()
    made.tests.clear()
    made.filters.clear()
    made.filters.update(_FILTERS)
    return made


@cache
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _check_template(source: str) -> tuple[Use, ...]:
    """Parse a template, reject what is not allowed, and list the names in it. Raises UsageError."""
    import jinja2

    if len(source) > MAX_SOURCE:
        raise UsageError(f"the template has {len(source):,} characters; the limit is {MAX_SOURCE:,}")
    try:
        tree = _environment().parse(source)
    except (jinja2.TemplateError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"the template `{_short(source)}` is invalid: {what}") from None
    check = _TemplateCheck()
    try:
        check.visit(tree, frozenset())
    except RecursionError:
        raise UsageError(f"the template `{_short(source)}` is nested too deeply") from None
    return tuple(dict.fromkeys(check.uses))


class _TemplateCheck:
    """Walks a template's syntax tree; unknown kinds of node are rejected."""

    _PLAIN = ("Template", "TemplateData", "Const", "Compare", "Operand", "And", "Or", "Not", "If")

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self._filters = 0

    def visit(self, node: nodes.Node, local: frozenset[str], printed: bool = False) -> None:
        """Check a node; `local` are the loop's own names."""
        kind = type(node).__name__
        special = getattr(self, f"_{kind.lower()}", None)
        if special is not None:
            special(node, local, printed)
        elif kind in self._PLAIN:
            for child in node.iter_child_nodes():
                self.visit(child, local)
        else:
            word = {"Call": "a call", "Getattr": "an attribute", "Assign": "`set`"}.get(kind, f"`{kind.lower()}`")
            raise UsageError(
                f"a template cannot contain {word}",
                hint="names, comparisons, `{% if %}`, `{% for %}` over a list and filters are allowed",
            )

    def _output(self, node: Any, local: frozenset[str], _: bool) -> None:
        for child in node.nodes:
            self.visit(child, local, printed=True)

    def _condexpr(self, node: Any, local: frozenset[str], printed: bool) -> None:
        self.visit(node.test, local)
        for child in (node.expr1, node.expr2):
            if child is not None:
                self.visit(child, local, printed)

    def _name(self, node: Any, local: frozenset[str], printed: bool) -> None:
        if node.name not in local:
            self.uses.append(Use(node.name, printed=printed))

    def _getattr(self, node: Any, local: frozenset[str], _: bool) -> None:
        inner = node.node
        if type(inner).__name__ == "Name" and inner.name == "loop" and "loop" in local and node.attr in _LOOP:
            return
        if type(inner).__name__ != "Name" or node.attr.startswith("_"):
            raise UsageError(f"a template cannot access `.{node.attr[:60]}`", hint=_attributes())
        if inner.name in local:
            if node.attr not in ATTRIBUTES:
                raise UsageError(f"there is no `.{node.attr[:60]}`", hint=_attributes())
            return
        self.uses.append(Use(inner.name, node.attr))

    def _getitem(self, node: Any, local: frozenset[str], printed: bool) -> None:
        of, by = node.node, node.arg
        names = type(of).__name__ == "Name"
        index = type(by).__name__ == "Name" or (type(by).__name__ == "Const" and type(by.value) is int)
        if not (names and index):
            raise UsageError("`[…]` takes a list's name and a whole number", hint="such as `${scores[0]}`")
        self.visit(of, local)
        self.visit(by, local)

    def _filter(self, node: Any, local: frozenset[str], _: bool) -> None:
        self._filters += 1
        if self._filters > MAX_FILTERS:
            raise UsageError(f"a template can have at most {MAX_FILTERS} filters")
        plain = all(type(each).__name__ == "Const" for each in node.args)
        if node.name not in _FILTERS or not plain or node.kwargs or node.dyn_args or node.dyn_kwargs or not node.node:
            known = ", ".join(f"`{each}`" for each in _FILTERS)
            raise UsageError(f"unknown filter `{str(node.name)[:60]}`", hint=f"known: {known}")
        self.visit(node.node, local)

    def _for(self, node: Any, local: frozenset[str], _: bool) -> None:
        if local or node.recursive or node.test or type(node.target).__name__ != "Name":
            raise UsageError("a loop is `{% for x in list %}`, without another loop in it")
        if type(node.iter).__name__ != "Name":
            raise UsageError("a loop runs over a list by its name")
        self.uses.append(Use(node.iter.name, looped=True))
        for child in [*node.body, *node.else_]:
            self.visit(child, frozenset({node.target.name, "loop"}))


def _attributes() -> str:
    return "allowed: `.text` of text, `.width` and `.height` of an image, and the outputs of a sub-workflow"
