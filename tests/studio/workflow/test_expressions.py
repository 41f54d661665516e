"""Expressions: what is a reference and what a template, what templates may hold, and how far they may go."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from studio.errors import InputError, UsageError
from studio.workflow import expressions
from studio.workflow.expressions import (
    Condition,
    Listed,
    Literal,
    NameReference,
    Size,
    TextTemplate,
    TextValue,
    Use,
    compile_condition,
    compile_text,
)


def rendered(text: str, **values: Any) -> str:
    found = compile_text(text)
    assert isinstance(found, TextTemplate)
    return found.render(values)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain", Literal("plain")),
        ("{{x}} {x} $x", Literal("{{x}} {x} $x")),
        ("${x}", NameReference("x")),
        (" ${ x }\n", NameReference("x")),
        ("${photo.width}", NameReference("photo", "width")),
    ],
)
def test_what_is_no_template(text: str, made: object) -> None:
    assert compile_text(text) == made


@pytest.mark.parametrize(
    ("text", "values", "made"),
    [
        ("a ${x}, ${x}", {"x": "b"}, "a b, b"),
        ("${x | upper | trim}!", {"x": " b "}, "B!"),
        ("${x | lower}${x | capitalize}", {"x": "aB"}, "abAb"),
        ("<${x | first_line}>", {"x": "\n one \ntwo"}, "<one >"),
        ("<${x | first_line}>", {"x": " "}, "<>"),
        ("${x | lines | join(by=' ')}", None, "unknown filter `join`"),
        ("${x | lines | join('/')}", {"x": "a\n\n b "}, "a/b"),
        ("${x | length}${x | first}${x | last}", {"x": ["p", "q"]}, "2pq"),
        ("${x | round(2)}, ${x | round}", {"x": 1.005}, f"{1.005:.2f}, 1"),
        ("${x | round(99)}.", {"x": 0.5}, "0.500000000000."),
        ("${x[1]} ${x[n]}", {"x": [1, 2], "n": 0}, "2 1"),
        ("${'many' if n > 1 else 'one'} x", {"n": 2}, "many x"),
        ("{% if a and not b or c %}y{% else %}n{% endif %}", {"a": 1, "b": 1, "c": 0}, "n"),
        ("{% for x in xs %}${loop.index}${x}{% if not loop.last %},{% endif %}{% else %}none{% endfor %}",
         {"xs": ["a", "b"]}, "1a,2b"),
        ("{% for x in xs %}${x}{% else %}none{% endfor %}", {"xs": []}, "none"),
        ("{% for x in xs %}${x.width}{% endfor %}", {"xs": [Size(3, 4)]}, "3"),
        ("{# no comment #} ${x}\n", {"x": 1}, "{# no comment #} 1\n"),
    ],
)  # fmt: skip
def test_what_a_template_makes(text: str, values: dict[str, Any] | None, made: str) -> None:
    if values is None:
        with pytest.raises(UsageError, match=re.escape(made)):
            compile_text(text)
    else:
        assert rendered(text, **values) == made


def test_text_is_its_own_text() -> None:
    assert rendered("${x.text}${x}.", x=TextValue("a")) == "aa."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${x()} .", "cannot contain a call"),
        ("${x.y.z} .", "cannot access `.z`"),
        ("${x.__class__} .", "cannot access `.__class__`"),
        ("${''.text} .", "cannot access `.text`"),
        ("{% for x in xs %}${x.y}{% endfor %}", "there is no `.y`"),
        ("${1 + 1} .", "cannot contain `add`"),
        ("${x * 9} .", "cannot contain `mul`"),
        ("${x ~ x} .", "cannot contain `concat`"),
        ("{% set x = 1 %}", "cannot contain `set`"),
        ("{% include 'x' %}", "cannot contain `include`"),
        ("{% macro x() %}{% endmacro %}", "cannot contain `macro`"),
        ("${x['a']} .", "takes a list's name and a whole number"),
        ("${x[0][0]} .", "takes a list's name and a whole number"),
        ("${x[0:2]} .", "takes a list's name and a whole number"),
        ("${x | nothing} .", "No filter named|unknown filter"),
        ("${x | join(y)} .", "unknown filter `join`"),
        ("{% for x in xs if x %}{% endfor %}", "without another loop"),
        ("{% for x, y in xs %}{% endfor %}", "without another loop"),
        ("{% for x in xs %}{% for y in x %}{% endfor %}{% endfor %}", "without another loop"),
        ("{% for x in xs | lines %}{% endfor %}", "runs over a list by its name"),
        ("{% if x %}", "is invalid"),
        ("${x", "is invalid"),
        ("${x is defined} .", "No test named|cannot contain `test`|is invalid"),
        ("${" + "(" * 5000 + "x" + ")" * 5000 + "} .", "10,003|the limit is 10,000|nested"),
        ("${" + "not " * 2000 + "x} .", "nested too deeply"),
        ("${x" + " | trim" * 33 + "} .", "at most 32 filters"),
    ],
)
def test_what_templates_may_not_hold(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        compile_text(text)


@given(st.text("${}%# x.y[0]|join('a')for in if and<>=\n", max_size=60) | st.text(max_size=40))
@example("${{}}")
@example("{%")
@example("${x}}")
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    with suppress(UsageError):
        found = compile_text(text)
        assert found.names == frozenset(use.name for use in found.uses)
        assert isinstance(found, Literal) is ("${" not in text and "{%" not in text)


def test_names_are_listed_with_their_use() -> None:
    found = compile_text("${a} ${b.width} ${c | length} {% for x in d %}${x}{% endfor %} ${e if f else g}")
    assert found.uses == (
        Use("a", printed=True), Use("b", "width"), Use("c"), Use("d", looped=True),
        Use("f"), Use("e", printed=True), Use("g", printed=True),
    )  # fmt: skip
    assert Listed((compile_text("${a}"), Literal(1), compile_text("<${b}>"))).names == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "values", "reason"),
    [
        ("${x} .", {}, "'x' is undefined"),
        ("${x[9]} .", {"x": [1]}, "fails"),
        ("${x | first} .", {"x": []}, "fails"),
        ("${x | round} .", {"x": "a"}, "fails: could not convert"),
        ("{% if x < y %}{% endif %}.", {"x": 1, "y": "a"}, "fails: '<' not supported"),
        ("${x}${x}", {"x": "a" * 60_000}, "more than 100,000 characters"),
        ("${x | join} .", {"x": ["a" * 60_000] * 2}, "more than 100,000 characters"),
    ],
)
def test_a_template_that_fails_is_an_error_of_the_input(text: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rendered(text, **values)


def test_the_time_of_a_template_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([0.0, 1.0, 2.5])
    monkeypatch.setattr(expressions.time, "monotonic", lambda: next(looks))
    with pytest.raises(InputError, match="takes more than 2 s"):
        rendered("{% for x in xs %}${x} {% endfor %}", xs=[1, 2, 3])


@pytest.mark.parametrize(
    ("when", "values", "holds"),
    [("${n > 1}", {"n": 2}, True), ("${n > 1}", {"n": 1}, False), (" ${a and b} ", {"a": 1, "b": ""}, False),
     ("${word}", {"word": ""}, False)],
)  # fmt: skip
def test_conditions(when: str, values: dict[str, Any], holds: bool) -> None:
    found = compile_condition(when)
    assert isinstance(found, Condition)
    assert found.holds(values) is holds
    assert found.names == set(values)


@pytest.mark.parametrize("when", ["yes", "n > 1", 1, None, "${a} and ${b", "a ${n}"])
def test_what_is_no_condition(when: object) -> None:
    with pytest.raises(UsageError, match=r"takes true, false or a condition|is invalid"):
        compile_condition(when)
    assert compile_condition(True) == Literal(True)
