from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio import errors


def drawn():
    """(name, parent, exit code or None) of every line of the drawn tree."""
    path, found = [], []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)(\w+) +(\d+)?", line):
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            found.append((match[2], path[-2] if depth else "Exception", int(match[3]) if match[3] else None))
    return found


def test_the_drawn_tree_is_the_tree():
    real = {
        (name, kind.__base__.__name__)
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert {(name, parent) for name, parent, _ in drawn()} == real
    for name, _, code in drawn():
        assert code is None or getattr(errors, name).exit_code == code


def test_the_hint_stands_on_its_own_line():
    assert str(errors.StudioError("no", hint="yes")) == "no\nhint: yes"
    assert str(errors.StudioError("no")) == "no"


def test_unknown_names_name_the_nearest():
    error = errors.UnknownName("generator", "imge", ["video", "image"])
    assert error.nearest == "image"
    assert "`imge`" in error.message
    assert "did you mean `image`? known: `video`, `image`" in error.hint
    assert "known: none" in errors.UnknownName("hook", "x", []).hint
    assert "`hook22`" in errors.UnknownName("hook", "x", [f"hook{i}" for i in range(23)]).hint, "few more are all named"
    assert "and 5 more" in errors.UnknownName("hook", "x", [f"hook{i}" for i in range(25)]).hint


@given(name=st.text(), candidates=st.lists(st.text(min_size=1), max_size=5))
def test_the_nearest_is_a_candidate(name, candidates):
    assert errors.nearest(name, candidates) in (None, *candidates)


@pytest.mark.parametrize("error", [errors.InputError("steps", "bad"), errors.WeightsError(Path("w"), "bad")])
def test_extra_facts_stay_reachable(error):
    assert getattr(error, "field", None) == "steps" or error.path == Path("w")
