"""A step that writes into its states and then fails: told, and nobody else pays for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.engine.calls.fingerprint import MOST_BYTES, fingerprint
from studio.engine.engine import Engine
from studio.engine.request import Request
from studio.errors import GeneratorFailed
from studio.recipe import PluginRef


@dataclass(frozen=True, kw_only=True, eq=False)
class Holds(studio.State):
    value: Any
    bad: bool = False


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(8), torch.zeros(8), torch.zeros(8, dtype=torch.bfloat16), torch.zeros(4, 4).T[1:], torch.tensor(1.5),
        torch.zeros(3, dtype=torch.bool), (torch.zeros(2), [np.zeros(3, np.int32)]),
    ],
)  # fmt: skip
def test_it_changes_with_any_element(value):
    state = Holds(value=value)
    before = fingerprint(state)
    assert fingerprint(state) == before
    inner = value[1][0] if isinstance(value, tuple) else value
    inner[...] = 1
    assert fingerprint(state) != before


@pytest.mark.parametrize(
    "value", [None, "text", torch.zeros(0), torch.zeros(MOST_BYTES), np.array([object()]), np.zeros((4, 4)).T, object()]
)
def test_what_is_not_looked_at_is_no_error(value):
    assert fingerprint(Holds(value=value)) == 0


class Careless(studio.Generator):
    """Add one in place; the bad one then raises."""

    name = "careless"
    output = studio.Text

    class Inputs(studio.Inputs):
        bad: bool = studio.field(False, help="raise")

    def start(self, model, inputs, rng):
        return Holds(steps=4, value=np.zeros(4), bad=inputs.bad)

    def step(self, model, states):
        if any(state.bad and state.position == 1 for state in states):
            for state in states:
                if state.bad:
                    state.value += 1
            raise MemoryError
        return [replace(state, position=state.position + 1, value=state.value + 1) for state in states]

    def finish(self, model, state):
        return studio.Text(str(state.value[0]))

    def batch_key(self, state):
        return 1


def test_the_guilty_one_fails_with_the_reason_and_is_not_tried_again():
    generator = Careless()
    made = [
        Request.of(generator, generator.Inputs.parse({"bad": bad}), 1, PluginRef(name="tests", version="1"))
        for bad in (False, True, False)
    ]
    with Engine("cpu") as engine:
        good, bad, other = engine.submit_many(made)
        assert (good.result(500).text, other.result(500).text) == ("4.0", "4.0")
        with pytest.raises(GeneratorFailed, match="had also changed its input state, which is not allowed"):
            bad.result(500)
