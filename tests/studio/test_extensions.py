"""Commands, methods and embedders: what may be declared, and where a target is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.extensions import Command, Embedder, Method, check_command, check_embedder, check_method, located, resolve


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (Command("hello", "Say hello.", "package.module:command"), None),
        (Command("hello-2", "Say hello.", ".module:command"), None),
        (Command("hello", "Say hello.", ":command"), None),
        (Command("Hello", "Say hello.", ":command"), "its name is 'Hello'"),
        (Command("--hello", "Say hello.", ":command"), "its name is '--hello'"),
        (Command("hello\n", "Say hello.", ":command"), "its name is 'hello\\n'"),
        (Command("h" * 31, "Say hello.", ":command"), "a name is 1 to 30 of a-z"),
        (Command("hello", "", ":command"), "its help must be one line of 1 to 80 characters"),
        (Command("hello", "Say\nhello.", ":command"), "its help must be one line"),
        (Command("hello", "Say \x1b[31mhello.", ":command"), "its help must be one line"),
        (Command("hello", "Say hello.", "command"), "its target is 'command'"),
        (Command("hello", "Say hello.", "..module:command"), "its target is '..module:command'"),
        (Command("hello", "Say hello.", "module:"), "its target is 'module:'"),
        (Command("hello", "Say hello.", print), "its target is <built-in"),
        (Command, "the class `Command` is not a `studio.Command`"),
        ("hello", "str is not a `studio.Command`"),
    ],
)
def test_a_command_is_checked(declared: object, words: str | None) -> None:
    reasons = check_command(declared)
    assert (not reasons) if words is None else words in "; ".join(reasons)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (Method("say_hello", ":hello"), None),
        (Method("_hello", ":hello"), "its name is '_hello'"),
        (Method("say-hello", ":hello"), "its name is 'say-hello'"),
        (Method("hello", "hello"), "its target is 'hello'"),
        (Command("hello", "Say hello.", ":command"), "Command is not a `studio.Method`"),
    ],
)
def test_a_method_is_checked(declared: object, words: str | None) -> None:
    reasons = check_method(declared)
    assert (not reasons) if words is None else words in "; ".join(reasons)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (Embedder("eye", pictures="see"), None),
        (Embedder("eye", pictures="see", texts="read"), None),
        (Embedder("eye", pictures=""), "its `pictures` is ''"),
        (Embedder("eye", pictures="see", texts="r e a d"), "its `texts` is 'r e a d'"),
        (3, "int is not a `studio.Embedder`"),
    ],
)
def test_an_embedder_is_checked(declared: object, words: str | None) -> None:
    reasons = check_embedder(declared)
    assert (not reasons) if words is None else words in "; ".join(reasons)


@pytest.mark.parametrize(
    ("target", "full"),
    [("a.b:c", "a.b:c"), (".b:c", "plugin.b:c"), (".b.d:c", "plugin.b.d:c"), (":c", "plugin:c")],
)
def test_a_target_is_relative_to_the_plugin(target: str, full: str) -> None:
    assert located(Method("x", target), "plugin").target == full


@given(st.from_regex(r"\A[.:\w]{1,12}\Z", fullmatch=True) | st.text())
def test_a_target_that_is_accepted_names_a_module_and_an_attribute(target: str) -> None:
    if not check_method(Method("x", target)):
        module, _, attribute = located(Method("x", target), "plugin").target.partition(":")
        assert all(part.isidentifier() for part in [*module.split("."), attribute])


def test_a_target_is_imported() -> None:
    import json

    assert resolve("json:loads") is json.loads
    with pytest.raises(AttributeError, match="nothing"):
        resolve("json:nothing")
