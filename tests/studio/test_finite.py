"""NaN and infinity are found where they arise, whatever holds them, and innocent requests go on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.engine import Engine, Request
from studio.errors import GeneratorFailed
from studio.finite import NotFinite, Reading, bad_weights, look, read_late
from studio.recipe import PluginRef
from studio.testing.fake_gpu import FakeGpu

BAD = st.sampled_from([float("nan"), float("inf"), -float("inf")])
HALVES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Held(studio.State):
    x: Any = None
    past: Any = ()
    cache: Any = studio.unsaved()


def with_bad(at, bad, dtype):
    x = torch.ones(7, dtype=dtype)
    x[at] = bad
    return x


@given(at=st.integers(0, 6), bad=BAD, dtype=st.sampled_from(HALVES), place=st.sampled_from(["x", "past"]))
def test_one_bad_number_is_enough_wherever_it_stands(at, bad, dtype, place):
    x = with_bad(at, bad, dtype)
    state = Held(x=x, cache=None) if place == "x" else Held(past=((3, x, {"a": [x]}),), cache=None)
    with pytest.raises(NotFinite, match=f"`{place}`: [0-9] of 7 values are NaN"):
        look(None, state)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9))
def test_finite_numbers_pass_however_large(numbers):
    """Even where their sum is infinite."""
    Reading(torch.tensor(numbers, dtype=torch.float32), "x").read()
    Reading(torch.full((9,), 3e38), "x").read()
    Reading(torch.full((100_000,), 60_000.0, dtype=torch.float16), "x").read()
    Reading(np.array(numbers, np.float32), "x").read()


def test_arrays_count_and_what_can_be_made_again_does_not():
    bad = np.array([1.0, np.nan], np.float32)
    with pytest.raises(NotFinite, match="`x`: 1 of 2 values are NaN and 0 infinite"):
        look(None, Held(x=bad, cache=None))
    assert look(None, Held(x=np.array([1, 2]), past=("word", 3), cache=bad)) == []


def test_what_stood_in_the_state_before_is_not_looked_at_again():
    bad = torch.tensor([torch.inf])
    old = Held(x=bad, past=(bad,), cache=None)
    assert look(old, replace(old, position=1, past=(bad, torch.ones(1)))) == []


def test_sums_left_on_a_device_name_the_first_bad_step():
    sums = [torch.tensor(value) for value in (1.0, torch.nan, torch.inf)]
    read_late([("start", sums[0])])
    with pytest.raises(NotFinite, match="since step 4"):
        read_late([("step 3", sums[0]), ("step 4", sums[1]), ("step 5", sums[2])])


@given(at=st.integers(0, 6), bad=BAD)
def test_pixels_of_bad_numbers_are_refused(at, bad):
    with pytest.raises(NotFinite, match="decoded pixels"):
        studio.pixels(with_bad(at, bad, torch.float32))


def test_pixels_are_rounded_and_cut_off():
    made = studio.pixels(torch.tensor([-1.0, 0.0, 0.501, 1.0, 7.0]))
    assert (made.tolist(), made.dtype) == ([0, 0, 128, 255, 255], torch.uint8)


def test_bad_weights_are_named_wherever_the_model_keeps_them():
    layer = torch.nn.Linear(2, 2)
    layer.register_buffer("mask", torch.tensor([-torch.inf]))  # as masks are
    model = Held(x={"net": [layer]}, cache=None)
    assert bad_weights(model) == []
    layer.weight.data[0, 0] = torch.inf
    assert bad_weights(model) == ["0.weight"]
    assert str(NotFinite("x").because(model)) == "x; the weights themselves contain NaN or infinity: `0.weight`"


class Spoils(studio.Generator):
    """Step a number; that of some requests is NaN from a step on, and on the CPU all numbers of that step are."""

    name = "spoils"
    output = studio.Text

    class Inputs(studio.Inputs):
        bad_from: int = studio.field(99, ge=0, le=99, help="the step")

    def __init__(self, device="cpu"):
        self.device = device

    def start(self, model, inputs, rng):
        x = torch.tensor([0.0 if inputs.bad_from else torch.nan]).to(self.device)
        return Held(steps=4, x=x, past=inputs.bad_from, cache=None)

    def step(self, model, states):
        bad = self.device == "cpu" and any(each.position + 1 >= each.past for each in states)
        worst = torch.nan if bad else 0.0
        return [
            replace(a, position=a.position + 1, x=a.x + 1 + (torch.nan if a.position + 1 >= a.past else worst * 0))
            for a in states
        ]

    def finish(self, model, state):
        return studio.Text(f"{state.x.item():.0f}")

    def batch_key(self, state):
        return 0


def test_the_request_at_fault_ends_at_its_step_and_the_others_go_on():
    generator = Spoils()
    plugin = PluginRef(name="tests", version="1")
    with Engine("cpu") as engine:
        tickets = engine.submit_many(
            [Request.of(generator, generator.Inputs(bad_from=each), 1, plugin) for each in (99, 3, 0, 99)]
        )
        assert [str(tickets[place].result(500)) for place in (0, 3)] == ["4", "4"]
        with pytest.raises(GeneratorFailed, match=r"`spoils` failed in step 3: `x`: 1 of 1 values are NaN"):
            tickets[1].result(500)
        with pytest.raises(GeneratorFailed, match=r"failed in start: .* NaN") as caught:
            tickets[2].result(500)
    assert "float32" in caught.value.hint


def test_on_a_device_no_step_waits_and_the_error_names_the_step_all_the_same():
    plugin = PluginRef(name="tests", version="1")
    with FakeGpu.installed() as gpu, gpu.counting() as counts, Engine("gpu") as engine:
        generator = Spoils("gpu:0")
        tickets = engine.submit_many(
            [Request.of(generator, generator.Inputs(bad_from=each), 1, plugin) for each in (99, 3, 0, 99)]
        )
        assert [str(tickets[place].result(500)) for place in (0, 3)] == ["4", "4"]
        with pytest.raises(GeneratorFailed, match="NaN or infinity in its state since step 3"):
            tickets[1].result(500)
        with pytest.raises(GeneratorFailed, match="NaN or infinity in its state since start"):
            tickets[2].result(500)
    read = sum(count for where, count in counts.waits.items() if where.startswith("finite.py"))
    assert read <= len(tickets) + 2, "once a request, with what is made, and again for the two that are at fault"
