"""The loop on a device with little memory: refusals with their sum, eviction, the ladder's rungs, hanging calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import studio
from studio import devices
from studio.engine import Engine
from studio.engine.calls.call import run_inline
from studio.engine.events import Failed, Finished, Loading, Notice
from studio.engine.memory.ledger import Ledger
from studio.engine.memory.model_cache import ModelCache
from studio.errors import GeneratorFailed, OutOfMemory
from tests.studio.engine.bench import Bench, ask

KIB = 1 << 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Block(studio.State):
    data: Any
    pieces: int = 1


class Heavy(studio.Generator):
    """Take memory: `weigh` KiB of weights, `hold` of state, `take` for each state in a step."""

    name = "heavy"
    output = studio.Text
    max_batch = 8

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, ge=1, help="steps")
        hold: int = studio.field(1, help="KiB of state")

    def __init__(self, name="heavy", weigh=10, take=0, pieces=0):
        self.name, self.weigh, self.take, self.pieces = name, weigh, take, pieces
        self.device = None
        self.widths, self.loads, self.oom = [], 0, 0

    def load(self, ref, device, dtype):
        self.loads += 1
        return {"w": np.zeros(self.weigh * KIB, np.uint8)}

    def start(self, model, inputs, rng):
        return Block(steps=inputs.steps, data=np.full(inputs.hold * KIB, 7, np.uint8))

    def step(self, model, states):
        assert len(model["w"]) == self.weigh * KIB
        assert all((state.data == 7).all() for state in states), "a state was damaged"
        self.widths.append(len(states))
        self.device.take(sum(self.take // state.pieces for state in states) * KIB)
        return [replace(state, position=state.position + 1) for state in states]

    def shrink(self, model, state):
        return replace(state, pieces=state.pieces * 2) if state.pieces < self.pieces else None

    def finish(self, model, state):
        return studio.Text(f"{self.name} {state.steps}")

    def batch_key(self, state):
        return len(state.data), state.pieces


class Device(Bench):
    """A device of `real` KiB that fails like torch does, and a loop on it with a ledger of `budget` KiB."""

    def __init__(self, budget, real=None):
        self.real = (real or 10**9) * KIB
        self.highest, self.recordings = 0, 0
        super().__init__(budget=None if budget is None else budget * KIB)

    def recorded(self):
        return self.recordings

    def take(self, size):
        held = self.ledger.used + size
        if held > self.real:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate")
        self.last = size
        self.highest = max(self.highest, held)

    def accept(self, generator, background=False, client="", **inputs):
        generator.device = self
        priority = "background" if background else "interactive"
        return super().accept(ask(generator, inputs, client=client, priority=priority))

    def notices(self, entry):
        return [event.text for event in self.events[entry] if isinstance(event, Notice)]


def test_what_can_never_fit_is_refused_at_once_once_that_is_known():
    device = Device(budget=64)
    heavy = Heavy(weigh=42, take=55)
    device.accept(heavy)
    [first] = device.drain()
    assert isinstance(first.error, OutOfMemory)
    assert heavy.widths == [1], "what a step takes is found out by one step"
    entry = device.accept(heavy)
    end = device.events[entry][-1]
    assert entry.ended, "before any work"
    assert isinstance(end.error, OutOfMemory)
    assert "weights 42.0 KiB + state 1.0 KiB + step 55.0 KiB = 98.0 KiB > budget 64.0 KiB" in end.error.message
    assert "--memory" in end.error.hint


def test_a_budget_smaller_than_the_model_is_told():
    device = Device(budget=5)
    entry = device.accept(Heavy(weigh=10))
    device.drain()
    error = device.events[entry][-1].error
    assert isinstance(error, OutOfMemory)
    assert "needs 10.0 KiB (its files: 0 B)" in error.message, "a claim that lies"
    assert device.ledger.used == 0


def test_models_that_do_not_fit_together_take_turns_and_come_back():
    device = Device(budget=50)
    one, other = Heavy("one", weigh=30, take=5), Heavy("other", weigh=30, take=5)
    for generator in (one, other):
        device.accept(generator)
        device.drain()
    entries = [device.accept(each, client=each.name) for each in (one, other, one, other)]
    ends = device.drain()
    assert [end.media.text for end in ends[2:]] == ["one 3", "other 3", "one 3", "other 3"]
    assert one.loads + other.loads <= 5, "no model leaves while its class's requests run"
    assert device.highest <= 50 * KIB
    assert len(device.models.resident()) == 1
    assert all(entry.ended for entry in entries)


def test_an_interactive_request_takes_the_place_of_a_background_model():
    device = Device(budget=50)
    video, picture = Heavy("video", weigh=30, take=5), Heavy("picture", weigh=30, take=5)
    for generator in (picture, video):
        device.accept(generator)
        device.drain()
    background = device.accept(video, background=True, steps=50)
    while background.state is None or background.state.position < 3:
        device.loop.tick()
    before = len(video.widths)
    entry = device.accept(picture)
    while not entry.ended:
        device.loop.tick()
    assert len(video.widths) == before, "it waits for no background step"
    assert isinstance(device.drain()[2], Finished)
    assert any(isinstance(event, Loading) for event in device.events[background][-60:])
    assert device.highest <= 50 * KIB


def test_widths_keep_within_the_budget_once_peaks_are_known():
    device = Device(budget=100)
    heavy = Heavy(weigh=10, take=20)
    device.accept(heavy, steps=1)
    device.drain()
    for _ in range(8):
        device.accept(heavy, steps=4)
    assert all(isinstance(end, Finished) for end in device.drain())
    assert device.highest <= 100 * KIB
    assert max(heavy.widths) > 1


def test_what_recordings_keep_is_not_given_to_wider_steps():
    widest = []
    for kept in (0, 40):
        device = Device(budget=100)
        device.recordings = kept * KIB
        heavy = Heavy(weigh=10, take=20)
        device.accept(heavy, steps=1)
        device.drain()
        for _ in range(8):
            device.accept(heavy, steps=4)
        assert all(isinstance(end, Finished) for end in device.drain())
        assert device.highest + device.recordings <= 100 * KIB
        widest.append(max(heavy.widths))
    assert widest[0] > widest[1]


class Recordings:
    """What a device has recorded, until it is told to drop it."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def drop(self, *, short=False):
        self.count = 0


def test_before_the_first_rung_recorded_launches_go():
    device, recorded = Device(budget=None, real=50), Recordings(3)
    idle, heavy = Heavy("idle", weigh=30), Heavy(weigh=10, take=15)
    device.accept(idle)
    device.drain()
    devices.device("cpu").register_graphs(recorded)
    entry = device.accept(heavy)
    assert isinstance(device.drain()[-1], Finished)
    assert len(recorded) == 0
    dropped = ("retrying without recorded CUDA graphs", "retrying without idle models")
    assert device.notices(entry) == [f"out of memory at batch size 1: {each}" for each in dropped]


def test_states_that_do_not_fit_wait_for_others_to_end():
    device = Device(budget=60)
    heavy = Heavy(weigh=10, take=5)
    for _ in range(7):
        device.accept(heavy, hold=20)
    assert all(isinstance(end, Finished) for end in device.drain())
    assert device.ledger.most_used <= 60 * KIB
    assert device.ledger.used == 10 * KIB, "only the model is left"


def test_memory_is_back_in_the_ledger_when_a_request_is_cancelled():
    device = Device(budget=60)
    entry = device.accept(Heavy(weigh=10), hold=20, steps=9)
    for _ in range(3):
        device.loop.tick()
    assert device.ledger.used == 30 * KIB
    device.loop.cancel(entry)
    assert device.ledger.used == 10 * KIB


def test_first_rung_idle_models_leave():
    device = Device(budget=None, real=50)
    idle, heavy = Heavy("idle", weigh=30), Heavy(weigh=10, take=15)
    device.accept(idle)
    device.drain()
    entry = device.accept(heavy)
    assert isinstance(device.drain()[-1], Finished)
    assert device.notices(entry) == ["out of memory at batch size 1: retrying without idle models"]
    assert heavy.widths == [1, 1, 1, 1]


def test_second_rung_the_width_is_halved_for_good():
    device = Device(budget=None, real=60)
    heavy = Heavy(weigh=10, take=10)
    other = Heavy("other", weigh=1)
    entries = [device.accept(heavy, steps=4) for _ in range(8)]
    witness = device.accept(other)
    assert all(isinstance(end, Finished) for end in device.drain())
    assert heavy.widths[:2] == [8, 4]
    assert max(heavy.widths[1:]) == 4
    assert device.notices(entries[0]) == ["out of memory at batch size 8: retrying with batch size 4"]
    assert device.notices(witness) == [], "others never notice"


def test_third_rung_smaller_pieces():
    device = Device(budget=None, real=30)
    heavy = Heavy(weigh=10, take=40, pieces=4)
    entry = device.accept(heavy)
    assert isinstance(device.drain()[0], Finished)
    assert device.notices(entry) == ["out of memory at batch size 1: retrying with smaller chunks"]
    assert len(heavy.widths) == 5


def test_last_rung_the_models_of_others_leave_and_come_back():
    device = Device(budget=None, real=60)
    neighbour, heavy = Heavy("neighbour", weigh=30), Heavy(weigh=10, take=30)
    first = device.accept(neighbour, steps=9, client="n")
    entry = device.accept(heavy, client="h")
    assert all(isinstance(end, Finished) for end in device.drain())
    assert device.notices(entry)[0] == "out of memory at batch size 1: retrying without the models of other requests"
    assert device.notices(first) == [], "its requests never notice"
    assert neighbour.loads > 1


def test_no_rung_left_fails_only_its_own():
    device = Device(budget=None, real=60)
    good, bad = Heavy("good", weigh=10, take=1), Heavy("bad", weigh=10, take=100, pieces=2)
    witness = device.accept(good, steps=6, client="g")
    entry = device.accept(bad, client="b")
    ends = device.drain()
    assert isinstance(ends[0], Finished)
    assert isinstance(ends[1].error, OutOfMemory)
    assert "in step 1" in ends[1].error.message
    assert (witness.ended, entry.ended) == (True, True)


def test_two_that_never_find_memory_do_not_drop_each_others_models_for_ever():
    device = Device(budget=10_000, real=100)
    for name in ("one", "other"):
        device.accept(Heavy(name, weigh=10, take=200), client=name, background=True)
    ends = device.drain()
    assert [type(end) for end in ends] == [Failed, Failed]
    assert all(isinstance(end.error, OutOfMemory) for end in ends)


def test_generators_with_equal_weights_and_one_load_share_the_model(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(KIB))
    copy = tmp_path / "copy.bin"
    copy.write_bytes(bytes(KIB))

    class Weighty(Heavy):
        """Read a file."""

        def __init__(self, name, path):
            super().__init__(name, weigh=1)
            self.path = path

        def weights(self, ref):
            return [self.path]

    source = ModelCache("cpu", ledger=Ledger(100 * KIB))
    one, other = Weighty("one", file), Weighty("other", copy)
    assert run_inline(source.get(ask(one))) is run_inline(source.get(ask(other)))
    assert (one.loads, other.loads, source.ledger.used) == (1, 0, KIB)
    copy.write_bytes(b"other" * 300)
    assert run_inline(ModelCache("cpu").get(ask(other))).weights != run_inline(source.get(ask(one))).weights


class Loud(studio.Generator):
    """Print 100 MB, then leave."""

    name = "loud"
    output = studio.Text

    def generate(self, model, inputs, rng):
        for _ in range(100):
            print("x" * 10**6)
        raise SystemExit(0)


@pytest.mark.usefixtures("capfd")
def test_a_plugin_that_prints_and_leaves_is_contained():
    loud, good = Loud(), Heavy("good")
    good.device = Device(None)
    with Engine("cpu") as engine:
        first = engine.submit(ask(loud))
        second = engine.submit(ask(good))
        with pytest.raises(GeneratorFailed, match=r"sys\.exit\(0\)"):
            first.result(500)
        assert second.result(500).text == "good 3"


def test_a_failed_event_is_the_last():
    device = Device(budget=None, real=5)
    entry = device.accept(Heavy(weigh=1, take=50))
    device.drain()
    assert [isinstance(event, Failed) for event in device.events[entry]].count(True) == 1
