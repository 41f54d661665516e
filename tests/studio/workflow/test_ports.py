"""Which output fits which input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.workflow.ports import MEDIA, Port, port_of_flag, port_of_value

PLAIN = ("int", "float", "bool", "json")
ports = st.builds(Port, st.sampled_from([*MEDIA, *PLAIN]), st.booleans())


@given(ports)
def test_a_port_feeds_itself(port: Port) -> None:
    assert port.feeds(port)


@given(ports, ports)
def test_lists_and_single_values_are_never_exchanged_except_as_json(one: Port, other: Port) -> None:
    if one.many != other.many and other.kind != "json":
        assert not one.feeds(other)
    if one.kind in MEDIA and one.kind != "text" and one != other:
        assert not one.feeds(other), "media feed their own kind only"


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("int", "float", True), ("float", "int", False), ("bool", "int", False), ("int", "bool", False),
        ("text", "json", True), ("image", "json", False), ("json", "int", True), ("json", "image", True),
        ("text", "image", False), ("int", "text", False),
    ],
)  # fmt: skip
def test_kinds(source: str, target: str, fits: bool) -> None:
    assert Port(source).feeds(Port(target)) is fits
    assert Port(source, many=True).feeds(Port(target, many=True)) is fits


@pytest.mark.parametrize(
    ("value", "port", "words"),
    [
        ("a", Port("text"), "text"),
        (True, Port("bool"), "true or false"),
        (1, Port("int"), "a whole number"),
        (1.5, Port("float"), "a number"),
        (None, Port("json"), "any value"),
        ([1, 2], Port("int", many=True), "a list, each a whole number"),
        ([1, "a"], Port("json", many=True), "a list, each any value"),
        ([], Port("json", many=True), "a list, each any value"),
        (studio.Embedding(np.ones(2)), Port("embedding"), "an embedding"),
        ([studio.Text("a")], Port("text", many=True), "a list, each text"),
    ],
)
def test_the_port_of_a_value(value: object, port: Port, words: str) -> None:
    assert port_of_value(value) == port
    assert str(port) == words


def test_the_port_of_an_input() -> None:
    class Inputs(studio.Inputs):
        words: list[str] = studio.field(help="words")
        picture: studio.Image = studio.field(help="a picture")
        count: int = studio.field(1, help="how many")
        sure: bool = studio.field(False, help="or not")

    found = {flag.name: port_of_flag(flag) for flag in Inputs.flags()}
    assert found == {
        "words": Port("text", many=True), "picture": Port("image"), "count": Port("int"), "sure": Port("bool"),
    }  # fmt: skip
