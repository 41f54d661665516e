"""Problems come together, in the order of lines, each once, with the nearest names."""

from __future__ import annotations

import pytest

from studio.errors import WorkflowError
from studio.workflow.problems import Place, Problems


def test_they_come_in_the_order_of_lines_and_each_once() -> None:
    problems = Problems()
    problems.raise_if_any()
    for line in (9, 2, 9, 10):
        problems.add(Place("f", line), f"what is in line {line}", "a hint" if line == 2 else None)
    with pytest.raises(WorkflowError) as caught:
        problems.raise_if_any()
    assert [message for message, _ in caught.value.problems] == [f"f:{n}: what is in line {n}" for n in (2, 9, 10)]
    assert caught.value.hint == "a hint"


def test_an_unknown_name_comes_with_the_nearest() -> None:
    problems = Problems()
    problems.unknown(Place("f", 3), "generator", "shoutt", ["shout", "paint"])
    assert str(problems.found[0]) == "f:3: no generator is called `shoutt`"
    assert "did you mean `shout`" in (problems.found[0].hint or "")
