"""How many threads a step computes with: chosen by trials on a simulated machine, and kept by a request to its end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import studio
from studio.devices import torch_setup
from studio.engine.cost.cpu_threads import GAIN, SHARE, ThreadTuner
from studio.engine.cost.profile import Group, Profile
from studio.engine.engine import Engine
from studio.engine.request import Request
from studio.recipe import MediaRef, PluginRef, Recipe
from studio.remake import Remake
from studio.spec import JobSpec


@pytest.fixture(autouse=True)
def free_threads(own_threads, monkeypatch):
    """All cores to choose from, also where tests run side by side and have a share of them."""
    monkeypatch.delenv(torch_setup.THREADS_VARIABLE)
    monkeypatch.setattr(torch_setup, "_usual", [torch_setup.cores()])
    monkeypatch.setattr(torch_setup, "crowded", lambda: False)  # whatever else this machine does


GROUP = Group("g", "1", "(4, 16, 16)", "cpu", "float32")


def threads(most=8, profile=None, crowded=False):
    made = ThreadTuner(profile or Profile(), free=True, crowded=lambda: crowded)
    made.most = most
    return made


def run(chooser, seconds, steps, width=1):
    """Make steps on a machine where one takes `seconds(threads)`; return the counts used, and the time of trials."""
    used, own, trials = [], 0.0, 0.0
    for _ in range(steps):
        group = GROUP._replace(threads=chooser.standing(GROUP))
        used.append(group.threads)
        own += seconds(group.threads)
        chooser.stepped(group, width, seconds(group.threads))
        other = chooser.due(group, width)
        if other is not None:
            trials += seconds(other)
            chooser.tried(group, other, width, seconds(other))
    return used, own, trials


@given(
    table=st.fixed_dictionaries({count: st.floats(0.001, 1) for count in (1, 2, 4, 8)}),
    width=st.integers(1, 8),
)
@settings(max_examples=12, deadline=None)
def test_nothing_near_it_is_much_faster_in_the_end(table, width):
    used, own, trials = run(threads(), table.__getitem__, 15000, width)
    last = used[-1]
    for near in (last // 2, last * 2):
        assert near not in table or table[near] * GAIN >= table[last]
    assert used[0] == 8, "what torch would take is where it begins"
    assert trials <= SHARE * own + 3 * max(table.values())


def test_a_little_is_not_worth_a_change():
    used, _, _ = run(threads(2), {1: 0.9, 2: 1.0}.__getitem__, 9000)
    assert set(used) == {2}


def test_a_machine_that_became_busy_is_noticed_at_once_and_forgotten_later():
    chooser = threads(2)
    run(chooser, {1: 0.04, 2: 0.02}.__getitem__, 300)
    busy, _, _ = run(chooser, {1: 0.04, 2: 0.32}.__getitem__, 100)
    assert busy[0] == 2
    assert busy[60:] == [1] * 40
    calm, _, _ = run(chooser, {1: 0.04, 2: 0.02}.__getitem__, 9000)
    assert calm[-1] == 2


def test_it_begins_where_another_process_ended(tmp_path):
    profile = Profile(tmp_path / "measured.json")
    run(threads(4, profile), {1: 0.01, 2: 0.02, 4: 0.05}.__getitem__, 10)
    for count, seconds in ((1, 0.01), (2, 0.02), (4, 0.05)):
        for _ in range(3):
            profile.record(GROUP._replace(threads=count), 1, seconds, None)
    profile.save()
    assert threads(4, Profile(tmp_path / "measured.json")).standing(GROUP) == 1


def test_what_was_never_tried_is_tried_at_once_and_a_running_request_changes_for_much():
    chooser = threads(2)
    group = GROUP._replace(threads=2)
    for _ in range(5):
        chooser.stepped(group, 1, 4.7)
        if chooser.due(group, 1) is not None:
            chooser.tried(group, 1, 1, 0.05)
    assert chooser.standing(GROUP) == 1
    assert chooser.better(group, 1) == 1
    assert chooser.better(GROUP._replace(threads=1), 1) is None


def test_beside_other_work_it_begins_with_one_and_widens_where_that_pays(tmp_path):
    profile = Profile(tmp_path / "measured.json")
    for count, seconds in ((1, 0.02), (2, 0.01)):
        for _ in range(3):
            profile.record(GROUP._replace(threads=count), 1, seconds, None)
    chooser = threads(2, profile, crowded=True)
    assert chooser.standing(GROUP) == 1, "what was learnt on an idle machine does not hold"
    used, _, _ = run(chooser, {1: 0.04, 2: 0.02}.__getitem__, 30)
    assert used[-1] == 2
    slow = threads(2, crowded=True)
    used, _, trials = run(slow, {1: 0.04, 2: 4.0}.__getitem__, 300)
    assert set(used) == {1}
    assert trials <= 2 * 4.0


def test_what_one_kind_of_step_taught_is_where_the_next_begins():
    chooser = threads(2)
    run(chooser, {1: 0.04, 2: 0.32}.__getitem__, 100)
    other = GROUP._replace(shape="(4, 32, 32)")
    assert chooser.standing(other) == 1


def test_where_there_is_nothing_to_choose_nothing_is_tried():
    one, bound = threads(1), ThreadTuner(Profile(), free=False)
    for chooser in (one, bound):
        assert chooser.standing(GROUP) is None
        group = GROUP._replace(threads=None)
        for _ in range(500):
            chooser.stepped(group, 1, 1.0)
            assert chooser.due(group, 1) is None


def test_a_trial_that_failed_is_the_last():
    chooser = threads(2)
    group = GROUP._replace(threads=2)
    for _ in range(1200):
        chooser.stepped(group, 1, 1.0)
    assert chooser.due(group, 1) == 1
    chooser.give_up(group)
    assert chooser.due(group, 1) is None
    for seconds in (1.0, 9.0):
        for _ in range(2000):
            chooser.stepped(group, 1, seconds)
            assert chooser.due(group, 1) is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Product(studio.State):
    x: Any


class Multiply(studio.Generator):
    """Multiply matrices, and note with how many threads."""

    name = "multiply"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(600, help="steps")

    def __init__(self, file, fails=0):
        self.file, self.fails, self.seen = file, fails, []

    def weights(self, ref):
        return [self.file]

    def load(self, ref, device, dtype):
        import torch

        return torch.linspace(-1, 1, 64 * 64).reshape(64, 64) / 8

    def start(self, model, inputs, rng):
        import torch

        return Product(steps=inputs.steps, x=torch.randn(64, 64, generator=rng.torch))

    def step(self, model, states):
        import torch

        self.seen.append(torch.get_num_threads())
        if self.fails and torch.get_num_threads() == self.fails:
            raise MemoryError
        return [replace(each, position=each.position + 1, x=torch.sin(each.x @ model + each.x)) for each in states]

    def finish(self, model, state):
        return studio.Text(str(float(state.x.double().sum())))


def make(generator, **more):
    request = Request.of(generator, generator.Inputs.parse({}), 5, PluginRef(name="tests", version="1"), **more)
    with Engine("cpu") as engine:
        return engine.submit(request).result(timeout=500)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights")
    return path


needs_two = pytest.mark.skipif(torch_setup.cores() < 2, reason="there is one core: nothing to choose")


@needs_two
def test_a_trial_changes_nothing_and_the_recipe_tells_the_count(file):
    generator = Multiply(file)
    made = make(generator)
    assert len(generator.seen) > 600, "some steps were made once more"
    assert len(set(generator.seen)) > 1
    again = Multiply(file)
    same = make(again, threads=made.recipe.spec.threads)
    assert same.text == made.text
    assert same.recipe.spec.threads == made.recipe.spec.threads
    assert again.seen.count(made.recipe.spec.threads) >= 600, "the recorded count is kept to the end"


@needs_two
def test_a_trial_that_fails_fails_nobody(file):
    usual = make(Multiply(file), invariant=True).recipe.spec.threads
    generator = Multiply(file, fails=usual // 2)
    made = make(generator, threads=usual)
    assert made.recipe.spec.threads == usual
    assert generator.seen.count(usual // 2) == 1


def test_the_users_own_number_stands(file, monkeypatch):
    monkeypatch.setenv(torch_setup.THREADS_VARIABLE, "1")
    import torch

    before, generator = torch.get_num_threads(), Multiply(file)
    try:
        assert make(generator, threads=2).recipe.spec.threads == 1
        assert set(generator.seen) == {1}
    finally:
        torch.set_num_threads(before)


def of_threads(count):
    return Recipe(
        plugin=PluginRef(name="studio_diffusion", version="1"), kind="image",
        spec=JobSpec(generator="image", inputs={"prompt": "a cat"}, seed=1, threads=count),
        output=MediaRef(sha256="0" * 64, media_type="image/png"),
    )  # fmt: skip


def test_a_hostile_recipe_asks_for_threads_in_vain(tmp_path):
    with studio.Studio(home=tmp_path / "home", device="cpu") as host:
        remake = Remake(host.store, host.requests, host.router, None, None, {})
        assert remake.request(of_threads(10**9), {}, bounded=False).spec.threads is None
        assert remake.request(of_threads(1), {}, bounded=False).spec.threads == 1
    for count in (0, -3):
        with pytest.raises(ValidationError, match="threads"):
            of_threads(count)
