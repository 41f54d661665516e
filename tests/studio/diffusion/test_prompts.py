"""The prompt syntax: weights, escapes, breaks and tags, read as written."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.diffusion.prompts import LARGEST, pieces, read

WORDS = st.text(st.characters(categories=["Ll", "Lo", "So"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 299)), max_size=4), WORDS)
def test_pieces_are_what_was_written(parts: list[tuple[str, str, int]], last: str) -> None:
    parts = [each for each in parts if each[2] != 100]
    prompt = "".join(f"{before}({words}:{weight / 100})" for before, words, weight in parts) + last
    wanted = [each for before, words, weight in parts for each in ((before, 1.0), (words, weight / 100))]
    assert pieces(prompt) == [*wanted, (last, 1.0)]


@given(st.text("()[]ab :.1\\<>B\n", max_size=30))
def test_anything_is_read_and_escapes_give_it_back(prompt: str) -> None:
    """Weights lie within their bounds, and a text whose brackets are escaped is that text."""
    with suppress(ValueError):  # a weight beyond the bounds
        assert all(text and 0 <= weight <= LARGEST for text, weight in read(prompt).pieces)
    plain = prompt.replace("\\", "")
    escaped = re.sub(r"([()\[\]<>])", r"\\\1", plain)
    assert read(escaped).pieces == ([(plain, 1.0)] if plain else [])
    assert read(escaped).notices == ()


@given(WORDS, st.lists(st.sampled_from(["()", "[]"]), max_size=9))
def test_nested_brackets_multiply(words: str, brackets: list[str]) -> None:
    weight = 1.1 ** sum(1 if each == "()" else -1 for each in brackets)
    prompt = "".join(each[0] for each in brackets) + words + "".join(each[1] for each in reversed(brackets))
    ((text, found),) = pieces(prompt)
    assert text == words
    assert found == pytest.approx(weight, abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a (small) apple", [("a ", 1.0), ("small", 1.1), (" apple", 1.0)]),
        ("a (wide (photo:1.2):2)", [("a ", 1.0), ("wide ", 2.0), ("photo", 2.4)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(16:9:1.2)", [("16:9", 1.2)]),
        (r"(a fox \(animal\):1.2)", [("a fox (animal)", 1.2)]),
        (r"(at 10\:30:1.2)", [(r"at 10\:30", 1.2)]),
        ("a [b", [("a [b", 1.0)]),
        ("a) b (c", [("a) b (c", 1.0)]),
        ("((((a", [("((((a", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        ("a 3 < 4 > 2", [("a 3 < 4 > 2", 1.0)]),
        ("", []),
    ],
)
def test_brackets_are_read_as_elsewhere(prompt: str, wanted: list[tuple[str, float]]) -> None:
    assert pieces(prompt) == wanted


@pytest.mark.parametrize(
    "prompt", ["a photo (16:9)", "(scale 1:87)", "(at 12:30)", "(ratio 3:2), wide", "(:1.3)", "(Psalm 23:4)"]
)
def test_ratios_and_times_are_text(prompt: str) -> None:
    assert pieces(prompt) == [(prompt, 1.0)]


@pytest.mark.parametrize(
    ("prompt", "text", "word"),
    [
        ("a house <lora:pixel art:0.8>", "a house", "`<lora:pixel art:0.8>` is ignored"),
        ("a [cat:dog:0.5]", "a cat", "`[cat:dog:0.5]` is read as `cat`"),
        ("a [cat:0.5]", "a cat", "between steps is not supported"),
        ("a [cat|dog]", "a cat", "between steps is not supported"),
        ("a {red|green} house", "a {red|green} house", "read as text"),
        ("a cat AND a dog", "a cat AND a dog", "read as text"),
        ("a house, embedding:EasyNegative", "a house, embedding:EasyNegative", "`embedding:` is not supported"),
        ("a __colour__ house", "a __colour__ house", "wildcard"),
        ("((((((((((((((red))))))))))))))", "red", "3, the largest, is used"),
    ],
)
def test_what_is_not_done_is_told(prompt: str, text: str, word: str) -> None:
    found = read(prompt)
    assert found.text == text
    assert word in found.notices[0]


def test_break_parts_a_prompt() -> None:
    assert read("a (house:1.2) BREAK\na tree").parts == ((("a ", 1.0), ("house", 1.2)), (("a tree", 1.0),))
    assert read("BREAK a BREAK BREAK b BREAK").text == "a b"
