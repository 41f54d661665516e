from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import studio
from studio.contract import check, check_trainer

SEEDS = st.integers(0, 2**63 - 1)


class Good(studio.Generator):
    """Do it well."""

    name = "good"
    output = studio.Text

    def generate(self, model, inputs, rng):
        return studio.Text("")


def variant(**changes):
    doc = changes.pop("doc", "Do it.")
    return type("Variant", (Good,), {"__doc__": doc, **changes})()


class NoHelp(studio.Inputs):
    strength: float = 1.0


class TakesSeed(studio.Inputs):
    seed: int = studio.field(1, help="not its own")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Good, "is a class; register an instance: `Good()`"),
        (7, "int is not a studio.Generator"),
        (variant(name=""), "its name is ''"),
        (variant(name="Bad Name"), "a name is 1 to 50 of a-z"),
        (variant(name="x" * 51), "a name is 1 to 50"),
        (variant(output=str), "it must be studio.Text"),
        (variant(output=studio.Media), "it must be studio.Text"),
        (variant(Inputs=dict), "`Inputs` is not a subclass of studio.Inputs"),
        (variant(Inputs=NoHelp), "`strength` has no help"),
        (variant(Inputs=TakesSeed), "`seed` has a name that is reserved"),
        (variant(doc=None), "has no docstring"),
        (variant(version=1), "its version is 1"),
        (variant(max_batch=0), "its max_batch is 0"),
        (variant(start=lambda *_: None), "defines both `generate` and `start`"),
        (variant(generate=studio.Generator.generate), "defines no `generate`, and no `start`, `step`, `finish`"),
        (variant(generate=studio.Generator.generate, start=Good.generate), "and no `step`, `finish`"),
    ],
)
def test_a_bad_generator_is_refused_with_its_reason(bad, words):
    assert words in "; ".join(check(bad))


def test_a_good_generator_passes():
    assert check(Good()) == []
    assert Good().summary == "Do it well."


class Train(studio.Trainer):
    """Train it."""

    name = "train"

    def run(self, options, console):
        console.print(options)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Train, "not an instance"),
        (type("T", (Train,), {"name": "?"})(), "its name"),
        (type("T", (studio.Trainer,), {"name": "t"})(), "defines no `run`"),
        (type("T", (Train,), {"Options": int})(), "`Options`"),
    ],
)
def test_a_bad_trainer_is_refused_with_its_reason(bad, words):
    assert words in "; ".join(check_trainer(bad))
    assert check_trainer(Train()) == []


@given(seed=SEEDS)
def test_equal_seeds_draw_equal_numbers(seed):
    one, other = studio.Rng(seed), studio.Rng(seed)
    assert one.python.random() == other.python.random()
    assert one.fork(3).python.random() == other.fork(3).python.random()
    assert one.fork(3).seed != one.fork("3").seed


@given(seed=SEEDS, draws=st.integers(0, 5))
def test_a_fork_depends_on_seed_and_key_alone(seed, draws):
    rng = studio.Rng(seed)
    before = rng.fork(1).seed
    for _ in range(draws):
        rng.python.random()
    assert rng.fork(1).seed == before


@given(seed=SEEDS, draws=st.integers(0, 5))
def test_a_saved_generator_goes_on(seed, draws):
    rng = studio.Rng(seed)
    for _ in range(draws):
        rng.python.gauss()
    again = studio.Rng.from_state_dict(json.loads(json.dumps(rng.state_dict())))
    assert [again.python.gauss() for _ in range(3)] == [rng.python.gauss() for _ in range(3)]


def test_torch_numbers_come_from_the_cpu_and_can_be_saved():
    import torch

    rng = studio.Rng(7)
    assert rng.torch.device == torch.device("cpu")
    first = torch.randn(20, generator=rng.torch)
    assert torch.equal(first, torch.randn(20, generator=studio.Rng(7).torch))
    again = studio.Rng.from_state_dict(json.loads(json.dumps(rng.state_dict())))
    assert torch.equal(torch.randn(20, generator=rng.torch), torch.randn(20, generator=again.torch))


@given(seed=st.integers(0, 2**32 - 1), key=st.integers(0, 99))
def test_small_seeds_are_those_of_torch_itself(seed, key):
    import torch

    expected = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.randn(4, generator=studio.Rng(seed).torch), expected)
    fork = studio.Rng(seed).fork(key)
    expected = torch.randn(4, generator=torch.Generator().manual_seed(fork.seed))
    again = studio.Rng.from_state_dict(json.loads(json.dumps(fork.state_dict())))
    assert torch.equal(torch.randn(4, generator=fork.torch), expected)
    assert torch.equal(torch.randn(4, generator=again.torch), expected)


@given(low=st.integers(0, 2**32 - 1), high=st.integers(1, 2**31 - 1), other=st.integers(0, 2**31 - 1))
def test_every_bit_of_a_seed_counts(low, high, other):
    """torch itself looks at the low 32 bits only."""
    import torch

    assume(high != other)
    one, two = (torch.randn(4, generator=studio.Rng((bits << 32) + low).torch) for bits in (high, other))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("seed", [-1, -(2**70), 2**64, 2**70])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"must be a whole number from 0 to 2\*\*64 - 1"):
        studio.Rng(seed)


def test_a_seed_means_the_same_in_another_process():
    code = "import studio; print(studio.Rng(7).python.random(), studio.Rng(7).fork('x').seed)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made.split() == [str(studio.Rng(7).python.random()), str(studio.Rng(7).fork("x").seed)]


@pytest.mark.parametrize("name", ["media", "flags", "parse", "copy"])
@pytest.mark.filterwarnings("ignore:Field name")
def test_an_input_cannot_hide_an_attribute_of_inputs(name):
    fields = {"__annotations__": {name: str}, name: studio.field("a", help="a text", max_length=9)}
    kind = type("Inputs", (studio.Inputs,), fields)
    reason = f"its input `{name}` has the name of an attribute of studio.Inputs"
    assert reason in "; ".join(check(type("Hiding", (Good,), {"Inputs": kind, "__doc__": "Hide it."})()))
    assert reason in "; ".join(check_trainer(type("Hiding", (Train,), {"Options": kind})()))
