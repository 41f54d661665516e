"""What saving costs and whom it serves: the keeper with an injected clock, under loops that run in no time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.engine import Finished, Notice
from studio.engine.checkpoints.autosave import SHARE, YOUNGEST_S, Autosaver
from studio.engine.checkpoints.checkpoint import Checkpoint
from studio.engine.checkpoints.run_folder import RunFolder
from studio.engine.cost.profile import Profile
from studio.engine.observe.watcher import Watcher
from studio.errors import StoreError
from studio.store import Store
from tests.studio.engine.bench import Bench, ask
from tests.studio.engine.toy_plugin import Chain


class Saves(Bench, Watcher):
    """A loop whose steps take `step_s` and whose saves take `save_s`, by its clock; all else takes no time."""

    def __init__(self, home, step_s=0.02, save_s=0.004):
        self.now, self.step_s, self.save_s = 0.0, step_s, save_s
        self.generator, self.saves, self.in_steps = Timed(self), [], 0.0
        self.folder = Slow(home, self)
        self.saver = Autosaver(self.folder, Store(home), (self,), self.clock)
        super().__init__(profile=Profile(), watchers=(self, self.saver), saver=self.saver)

    def clock(self):
        return self.now

    def stepped(self, requests, positions, generator, begun, ended):
        self.in_steps += ended - begun

    def saved(self, request, generator, size, begun, ended):
        self.saves.append((request, begun, ended))

    def accept(self, client="", **inputs):
        return super().accept(ask(self.generator, {"pause": 0, **inputs}, client=client))

    def checkpoints(self):
        return sorted(self.folder.path().glob("*.safetensors"))


class Timed(Chain):
    """A chain whose step takes time by the bench's clock alone."""

    def __init__(self, bench):
        self.bench = bench

    def next(self, state):
        self.bench.now += self.bench.step_s
        return replace(state, position=state.position + 1, link=f"{state.position}")


class Slow(RunFolder):
    """A folder on a disk that takes its time; `full` makes it fail."""

    def __init__(self, home, bench):
        super().__init__(home)
        self.bench, self.full = bench, False

    def write(self, name, data, *, durable):
        self.bench.now += self.bench.save_s
        if self.full:
            raise StoreError("the disk is full")
        path = self.path() / name
        path.unlink(missing_ok=True)  # so that the real disk is not waited for
        path.write_bytes(data)
        return path


def run(bench, ticks):
    for _ in range(ticks):
        assert bench.tick()


@pytest.fixture
def bench(tmp_path):
    made = Saves(tmp_path)
    yield made
    made.folder.close()


@settings(max_examples=25)
@given(
    requests=st.integers(1, 4),
    steps=st.integers(1, 200),
    step_s=st.sampled_from([0.001, 0.02, 0.5, 10.0]),
    save_s=st.sampled_from([0.0001, 0.004, 0.1, 3.0]),
)
def test_saving_costs_under_a_hundredth_and_at_most_one_save_more(requests, steps, step_s, save_s, tmp_path_factory):
    bench = Saves(tmp_path_factory.mktemp("home"), step_s, save_s)
    for _ in range(requests):
        bench.accept(steps=steps)
    bench.drain()
    spent = sum(ended - begun for _, begun, ended in bench.saves)
    first = bench.saves[0][2] - bench.saves[0][1] if bench.saves else 0  # what a save costs is learned from the first
    assert spent <= SHARE * bench.in_steps + first + 1e-9
    assert all(begun >= YOUNGEST_S for _, begun, _ in bench.saves)
    assert all(isinstance(events[-1], Finished) for events in bench.events.values())
    assert bench.checkpoints() == [], "a checkpoint goes with its request"
    bench.folder.close()


def test_short_requests_are_never_saved(bench):
    for _ in range(300):
        bench.accept(steps=4)
        bench.drain()
    assert bench.in_steps > 20
    assert bench.saves == []


def test_those_that_wait_for_the_oldest_are_saved_too(bench):
    for _ in range(5):
        bench.accept(steps=2000)
    run(bench, 1500)
    assert len(bench.checkpoints()) == 5


def test_all_requests_get_their_turn(bench):
    for client in "abcde":
        bench.accept(client, steps=2000)
    run(bench, 3000)
    counts = [sum(number == request for request, *_ in bench.saves) for number in range(1, 6)]
    assert min(counts) >= 3
    assert max(counts) - min(counts) <= 1
    assert len(bench.checkpoints()) == 5


def test_what_is_saved_is_the_latest_state(bench):
    entry = bench.accept(steps=2000)
    while len(bench.saves) < 3:
        bench.loop.tick()
    checkpoint = Checkpoint.open(bench.checkpoints()[0])
    assert checkpoint.progress.position == entry.state.position
    assert checkpoint.progress.notices == ("begun",)
    assert checkpoint.state(entry.state, "cpu").link == entry.state.link


def test_a_state_that_cannot_be_saved_is_told_of_once_and_goes_on(bench):
    bad, good = bench.accept(steps=1000, keep_lock=True), bench.accept(steps=1000)
    bench.drain()
    told = [event.text for event in bench.events[bad] if isinstance(event, Notice)]
    assert told == [
        "begun",
        "this request cannot be resumed after a crash: `lock` is a object; a state may hold tensors, JSON values,"
        " tuples and Rng",
    ]
    assert isinstance(bench.events[bad][-1], Finished)
    assert bad.notices == ["begun"], "the recipe does not depend on when a save was tried"
    assert {number for number, *_ in bench.saves} == {good.number}


def test_a_full_disk_costs_the_saving_alone(bench):
    entry = bench.accept(steps=2000)
    while not bench.saves:
        bench.loop.tick()
    bench.folder.full = True
    bench.drain()
    assert "this request cannot be resumed after a crash: the disk is full" in [
        event.text for event in bench.events[entry] if isinstance(event, Notice)
    ]
    assert isinstance(bench.events[entry][-1], Finished)


def failing(error):
    def raise_it(*_):
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (lambda bench, entry: bench.drain(), False),
        (lambda bench, entry: bench.loop.cancel(entry), False),
        (lambda bench, entry: (setattr(bench.generator, "step", failing(ValueError("no"))), bench.drain()), False),
        (lambda bench, entry: (setattr(bench.loop, "complete", failing(StoreError("full"))), bench.drain()), True),
    ],
    ids=["finished", "cancelled", "failed by itself", "failed by the disk"],
)
def test_a_checkpoint_goes_unless_the_fault_was_anothers(bench, end, kept):
    entry = bench.accept(steps=500)
    while not bench.saves:
        bench.loop.tick()
    end(bench, entry)
    assert entry.ended
    assert len(bench.checkpoints()) == kept


def test_media_that_were_given_can_be_found_again(tmp_path):
    class Blur(Timed):
        """Take a picture."""

        class Inputs(studio.Inputs):
            image: studio.Image = studio.field(help="picture")
            steps: int = studio.field(500, help="steps")

        def start(self, model, inputs, rng):
            return super().start(model, Chain.Inputs.parse({"steps": inputs.steps, "pause": 0}), rng)

    bench = Saves(tmp_path)
    generator = Blur(bench)
    picture = studio.Image.from_array(np.zeros((8, 8, 3), np.uint8))
    Bench.accept(bench, ask(generator, {"image": picture}))
    while not bench.saves:
        bench.loop.tick()
    inputs = Checkpoint.open(bench.checkpoints()[0]).progress.spec.inputs
    assert generator.Inputs.from_recipe(inputs, lambda ref: bench.saver.store.open(ref.sha256)).image == picture
    bench.folder.close()
