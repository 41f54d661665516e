"""A workflow's inputs: types, ranges and defaults, as for a generator's."""

from __future__ import annotations

from typing import Any

import pytest

from studio.errors import InputError, WorkflowError
from studio.inputs import Inputs
from studio.workflow.declare import declare
from studio.workflow.document import parse
from studio.workflow.ports import Port
from studio.workflow.problems import Problems


def declared(text: str) -> tuple[type[Inputs], dict[str, Port]]:
    root, problems = parse(text, "flow.yaml"), Problems()
    made = declare(root, tuple(root.data), problems)
    problems.raise_if_any()
    return made


def test_types_defaults_and_ranges() -> None:
    made, ports = declared(
        "word: text\n"
        "n: {type: int, default: 3, ge: 1, le: 9, help: how many}\n"
        "half: {type: float, default: 1}\n"
        "sure: {type: bool, default: false}\n"
        "words: {type: text, list: true, default: [a, b]}\n"
        "kind: {type: text, choices: [x, y], default: x}\n"
        "photo: {type: image, list: false}\n"
    )
    assert ports["words"] == Port("text", many=True)
    assert ports["photo"] == Port("image")
    flags = {flag.name: flag for flag in made.flags()}
    assert {name for name, flag in flags.items() if flag.required} == {"word", "photo"}
    assert (flags["n"].help, flags["word"].help) == ("how many", "the workflow's `word`")
    found = made.problems({"word": "a", "n": 10, "kind": "z"})
    assert set(found) == {"n", "kind"}
    with pytest.raises(InputError, match="`n` is 0"):
        made.parse({"word": "a", "n": 0})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {typ: int}", "no setting of an input is called `typ`.*"),
        ("a: integer", "no type of input is called `integer`"),
        ("a: {help: x}", "the input `a` has no type"),
        ("a: {type: [int]}", "the input `a` has no type"),
        ("a: 3", "the input `a` has no type"),
        ("a: {type: int, list: 1}", "`list` is 1, but must be true or false"),
        ("a: {type: text, ge: 1}", "`ge` of the input `a` must be a number, for an input of numbers"),
        ("a: {type: int, list: true, le: 1}", "`le` of the input `a` must be a number"),
        ("a: {type: int, ge: true}", "`ge` of the input `a` must be a number"),
        ("a: {type: int, help: 1}", "`help` of the input `a` must be text"),
        ("a: {type: text, choices: []}", "`choices` of the input `a` must be a list of values"),
        ("a: {type: text, choices: [[x]]}", "`choices` of the input `a` must be a list of values"),
        ("a: {type: int, default: x}", "the default of `a` must be a whole number"),
        ("a: {type: int, default: true}", "the default of `a` must be a whole number"),
        ("a: {type: float, default: no}", "the default of `a` must be a number"),
        ("a: {type: bool, default: 1}", "the default of `a` must be true or false"),
        ("a: {type: text, default: 1}", "the default of `a` must be text"),
        ("a: {type: text, list: true, default: x}", "the default of `a` must be a list, each text"),
        ("a: {type: text, list: true, default: [x, 1]}", "the default of `a` must be a list, each text"),
        ("a: {type: image, default: x.png}", "the default of `a` must be a picture"),
    ],
)
def test_what_is_wrong_is_told(text: str, reason: str) -> None:
    with pytest.raises(WorkflowError, match=rf"flow\.yaml:1: {reason}"):
        declared(text)


def test_every_problem_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkflowError) as caught:
        declared("a: {type: int, ge: x, le: y}\nb: nothing\nc: {type: bool, default: x}")
    assert [message.partition(":")[2][0] for message, _ in caught.value.problems] == [*"1123"]


@pytest.mark.parametrize("count", [1000, 1001])
def test_a_list_that_is_given_is_bounded(count: int) -> None:
    made, _ = declared("a: {type: int, list: true}")
    assert bool(made.problems({"a": [1] * count})) is (count > 1000)


def test_a_default_out_of_its_own_range_is_found_when_it_is_used() -> None:
    made, _ = declared("a: {type: int, ge: 5, default: 1}")
    values: dict[str, Any] = {"a": 1}
    assert made.problems(values)
