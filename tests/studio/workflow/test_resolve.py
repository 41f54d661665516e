"""Values while a workflow runs: media by hash, read only where their content is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import studio
from studio.errors import InputError, StudioError
from studio.store import Store
from studio.workflow.expressions import Literal, compile_condition, compile_text
from studio.workflow.graph import Node
from studio.workflow.problems import Place
from studio.workflow.resolve import Resolver, refs

from .conftest import GENERATORS

PICTURE = studio.Image.from_array(np.zeros((3, 5, 3), np.uint8))
SCORES = studio.Embedding(np.array([0.5, 2.0]))


@pytest.fixture
def resolver(tmp_path: Path) -> Resolver:
    made = Resolver(Store(tmp_path))
    given = {"word": "hi", "n": 3, "photo": PICTURE, "scores": SCORES, "story": studio.Text("once"),
             "all": [PICTURE, PICTURE], "none": [], "words": ["a", "b"], "long": "x" * 100_001}  # fmt: skip
    made.values = {name: made.named(value) for name, value in given.items()} | {"sub.best": "inner"}
    return made


def node(use: str = "shout", when: Any = None, map: Any = None, **inputs: Any) -> Node:
    names = ("word", "n", "photo", "scores", "story", "all", "none", "words", "long")
    scope = {name: name for name in names} | {"sub.best": "sub.best"}
    wires = {name: compile_text(each) if isinstance(each, str) else Literal(each) for name, each in inputs.items()}
    return Node("node", Place("f", 1), "make", wires, GENERATORS[use], when=when, map=map, scope=scope)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"), ("${n}", 3), ("${photo}", PICTURE.ref), ("${photo.width}", 5), ("${photo.height}", 3),
        ("${story.text}", "once"), ("${story}!", "once!"), ("${scores[1] | round(1)}.", "2.0."),
        ("${sub.best}", "inner"), ("<${sub.best}>", "<inner>"), ("${all}", [PICTURE.ref] * 2),
        ("{% for p in all %}${p.width} {% endfor %}", "5 5 "), ("${item} of ${words | length}", "it of 2"),
    ],
)  # fmt: skip
def test_expressions(resolver: Resolver, text: str, value: object) -> None:
    made = node(map=Literal([1]))
    assert resolver.value(made, compile_text(text), {"item": "it"}) == value


def test_what_is_too_long_for_a_template_is_an_error(resolver: Resolver) -> None:
    with pytest.raises(InputError, match="text of 100,001 characters; the limit in a template is 100,000"):
        resolver.value(node(), compile_text("${long}!"), {})
    assert resolver.value(node(), compile_text("${long}"), {}) == "x" * 100_001, "passed on, it is not read"
    resolver.values["words"] = ["a"] * 1001
    with pytest.raises(InputError, match="the list has 1,001 items; the limit in a template is 1,000"):
        resolver.value(node(), compile_text("${words | join}!"), {})


def test_inputs_and_their_parents(resolver: Resolver) -> None:
    made, parents = resolver.inputs(node(text="${story}, ${photo.width}", times=2), {})
    assert (made, parents) == ({"text": "once, 5", "times": 2}, (studio.Text("once").sha256, PICTURE.sha256))
    made, parents = resolver.inputs(node("measure", images="${all}"), {})
    assert (made, parents) == ({"images": [PICTURE.ref.model_dump()] * 2}, (PICTURE.sha256,)), "each parent once"
    with pytest.raises(StudioError, match="`text` does not accept a picture"):
        resolver.inputs(node(text="${photo}"), {})


def test_what_lacks_items(resolver: Resolver) -> None:
    assert resolver.lacking(node("measure", images="${none}")) == "images"
    assert resolver.lacking(node("measure", images="${all}")) is None
    assert resolver.lacking(node(text="${word}")) is None


def test_conditions(resolver: Resolver) -> None:
    for when, holds in ((None, True), (Literal(False), False), (compile_condition("${n > 2 and word == 'hi'}"), True),
                        (compile_condition("${none}"), False)):  # fmt: skip
        assert resolver.holds(node(when=when)) is holds


@pytest.mark.parametrize("value", [True, 2.0, "3", -1, 10, None])
def test_what_is_no_whole_number_of_a_range(resolver: Resolver, value: object) -> None:
    with pytest.raises(InputError, match="must be a whole number from 0 to 9"):
        resolver.whole(node(), "repeat", Literal(value), 0, 9)
    assert resolver.whole(node(), "repeat", compile_text("${n}"), 0, 9) == 3


def test_scores_and_media_in_a_value(resolver: Resolver) -> None:
    assert resolver.scores(SCORES.ref) == [0.5, 2.0]
    assert resolver.scores([1, 2.5]) == [1.0, 2.5]
    assert refs([PICTURE.ref, 3, "a"]) == [PICTURE.ref]
    assert refs(PICTURE.ref) == [PICTURE.ref]
    assert refs("a") == []
