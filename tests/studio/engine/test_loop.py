"""The pure loop under random schedules: hypothesis accepts, ticks and cancels; real little generators do arithmetic."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import studio
from studio.engine.cost.profile import Profile
from studio.engine.events import CancelledEvent, Failed, Finished, Notice, Preview, Progress, Queued, Started
from studio.errors import GeneratorFailed, OutOfMemory
from tests.studio.engine.bench import Bench, ask

FAULTS = ("raise", "exit", "interrupt", "count", "type", "none", "stay", "memory", "start", "finish", "wrong", "key")


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryNeed(studio.State):
    value: int
    first: int
    group: int
    fault: str = ""
    at: int = 0


class Adder(studio.Generator):
    """Add one in each step."""

    name = "adder"
    output = studio.Text
    max_batch = 3

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, ge=0, le=8, help="steps")
        group: int = studio.field(0, help="batch key")
        fault: str = studio.field("", help="what goes wrong")
        at: int = studio.field(1, help="in which step")

    def __init__(self):
        self.batches = []

    def start(self, model, inputs, rng):
        if inputs.fault == "start":
            raise ValueError("no start")
        first = rng.python.randrange(1000)
        return MemoryNeed(
            steps=inputs.steps, value=first, first=first, group=inputs.group, fault=inputs.fault, at=inputs.at
        )

    def step(self, model, states):
        self.batches.append(list(states))
        assert all(state.value == state.first + state.position for state in states), "a state was damaged"
        made = [replace(state, position=state.position + 1, value=state.value + 1) for state in states]
        for state in states:
            if state.fault and state.position + 1 >= state.at:
                made = self.go_wrong(state, made)
        return made

    def go_wrong(self, state, made):
        match state.fault:
            case "raise":
                raise ValueError("no step")
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "memory":
                raise MemoryError
            case "count":
                return made[:-1]
            case "type":
                return [*made[:-1], 7]
            case "none":
                return None
            case "stay":
                return [replace(each, position=each.position - 1) for each in made]
        return made

    def finish(self, model, state):
        if state.fault == "finish":
            raise OSError("no end")
        return 3 if state.fault == "wrong" else studio.Text(str(state.value))

    def batch_key(self, state):
        return [state.group] if state.fault == "key" else state.group


class Loner(Adder):
    """Add one in each step, and share none."""

    name = "loner"

    def batch_key(self, state):
        return studio.Generator.batch_key(self, state)


class Crowd(Adder):
    """Add one in each step, and finish several at once."""

    name = "crowd"

    def __init__(self):
        super().__init__()
        self.finished = []

    def finish_many(self, model, states):
        assert 1 < len(states) <= self.max_batch
        assert len({state.group for state in states}) == 1
        if any(state.fault == "crowd" for state in states):
            raise MemoryError
        made = [self.finish(model, state) for state in states]
        self.finished.append(len(states))
        return made[1:] if any(state.fault == "short" for state in states) else made


def request(generator, seed=1, **inputs):
    preview_every = inputs.pop("preview_every", 0)
    return ask(generator, inputs, seed, preview_every=preview_every)


class LoopMachine(RuleBasedStateMachine):
    @initialize(max_running=st.integers(1, 6))
    def begin(self, max_running):
        self.bench, self.max_running = Bench(max_running=max_running), max_running
        self.generators = [Adder(), Loner(), Crowd()]
        self.cancelled = set()
        self.seen_batches = [0, 0, 0]

    @rule(
        which=st.integers(0, 2),
        seed=st.integers(0, 50),
        steps=st.integers(0, 8),
        group=st.integers(0, 1),
        fault=st.sampled_from(["", "", "", "crowd", "short", *FAULTS]),
        at=st.integers(1, 8),
    )
    def accept(self, which, seed, steps, group, fault, at):
        made = request(self.generators[which], seed, steps=steps, group=group, fault=fault, at=at)
        self.bench.accept(made)

    @rule()
    def tick(self):
        before = {entry: entry.state for entry in self.bench.loop.running}
        was_done = {entry: entry.done for entry in before}
        counts = [len(generator.batches) for generator in self.generators]
        self.bench.loop.tick()
        stepped = [
            state
            for generator, count in zip(self.generators, counts, strict=True)
            for batch in generator.batches[count:]
            for state in batch
        ]
        assert len([1 for g, c in zip(self.generators, counts, strict=True) if len(g.batches) > c]) <= 1
        for generator in self.generators:
            mine = [entry for entry in before if entry.request.generator is generator]
            moved = [entry.number for entry in mine if before[entry] in stepped]
            assert not moved or min(moved) <= min(entry.number for entry in mine if not was_done[entry]), "oldest first"
        for entry, state in before.items():  # whoever did not step, or stepped in vain, is as before
            if state not in stepped and not entry.ended:
                assert entry.state is state

    @rule(data=st.data())
    def cancel(self, data):
        alive = [entry for entry in self.bench.events if not entry.ended]
        if alive:
            entry = data.draw(st.sampled_from(alive))
            state = entry.state
            self.bench.loop.cancel(entry)
            self.cancelled.add(entry)
            assert entry.state is None
            assert entry not in self.bench.loop.running
            assert entry not in self.bench.loop.waiting
            counts = sum(len(generator.batches) for generator in self.generators)
            self.bench.loop.tick()
            later = [batch for generator in self.generators for batch in generator.batches]
            assert state is None or all(state not in batch for batch in later[counts:])

    @invariant()
    def batches_are_lawful(self):
        if not hasattr(self, "generators"):
            return
        for index, generator in enumerate(self.generators):
            for batch in generator.batches[self.seen_batches[index] :]:
                assert 1 <= len(batch) <= generator.max_batch
                assert len({state.group for state in batch}) == 1
                assert index != 1 or len(batch) == 1
                assert len({id(state) for state in batch}) == len(batch)
            self.seen_batches[index] = len(generator.batches)

    @invariant()
    def nothing_follows_the_end(self):
        if not hasattr(self, "bench"):
            return
        assert len(self.bench.loop.running) <= self.max_running
        for entry, events in self.bench.events.items():
            last = [event for event in events if event.last]
            assert len(last) == entry.ended
            assert not last or events[-1] is last[0]

    def teardown(self):
        if not hasattr(self, "bench"):
            return
        self.bench.drain()
        for entry, events in self.bench.events.items():
            assert entry.ended
            self.check_end(entry, events[-1])

    def check_end(self, entry, end):
        inputs = entry.request.inputs
        elsewhere = ("start", "finish", "wrong", "key", "crowd", "short", "")
        in_steps = inputs.fault not in elsewhere and inputs.at <= inputs.steps
        shared = inputs.fault == "key" and entry.name != "loner"
        if entry in self.cancelled:
            assert isinstance(end, CancelledEvent)
        elif inputs.fault in ("start", "finish", "wrong") or in_steps or shared:
            assert isinstance(end, Failed), (inputs, end)
            assert isinstance(end.error, GeneratorFailed)
        else:
            first = studio.Rng(entry.request.spec.seed).python.randrange(1000)
            assert end == Finished(studio.Text(str(first + inputs.steps))), inputs


LoopMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLoopMachine = LoopMachine.TestCase


def run(*requests, max_running=5):
    bench = Bench(max_running=max_running)
    entries = [bench.accept(each) for each in requests]
    bench.drain()
    return bench, entries, [bench.events[entry][-1] for entry in entries]


def test_events_come_in_order():
    adder = Adder()
    bench, [entry], _ = run(request(adder, steps=2))
    kinds = [type(event) for event in bench.events[entry]]
    assert kinds[0] is Queued
    assert kinds[-4:] == [Started, Progress, Progress, Finished]


def test_equal_keys_share_steps_and_widths_are_recorded():
    adder = Adder()
    _, entries, ends = run(*(request(adder, seed, steps=3) for seed in range(3)))
    assert [len(batch) for batch in adder.batches] == [3, 3, 3]
    assert all(isinstance(end, Finished) for end in ends)
    assert {(entry.width_min, entry.width_max) for entry in entries} == {(3, 3)}


@given(count=st.integers(1, 28), steps=st.integers(1, 6), max_running=st.integers(3, 32))
@settings(max_examples=40, deadline=None)
def test_those_that_came_first_are_finished_first_in_as_few_steps(count, steps, max_running):
    adder = Adder()
    bench = Bench(max_running=max_running)
    entries = [bench.accept(request(adder, seed, steps=steps)) for seed in range(count)]
    took = {}
    for _ in range(10_000):
        if not bench.loop.tick():
            break
        for entry in entries:
            if entry.ended:
                took.setdefault(entry, len(adder.batches))
        begun = [entry.state.position for entry in entries if entry.state]
        assert len([position for position in begun if position]) <= adder.max_batch
        assert len(begun) <= adder.max_batch + len(adder.batches), "what waits begins between steps, one at a time"
    assert list(took) == entries, "in the order they came"
    width = adder.max_batch
    assert [took[entry] for entry in entries] == [steps * (index // width + 1) for index in range(count)]


def test_clients_share_while_each_finishes_its_oldest_first():
    adder, bench = Adder(), Bench(max_running=32)
    entries = {client: [] for client in "abc"}
    for client, count in (("a", 9), ("b", 3), ("c", 1)):
        for seed in range(count):
            entries[client].append(bench.accept(ask(adder, {"steps": 6}, seed, client=client)))
    ended = []
    while bench.loop.tick():
        ended += [each for mine in entries.values() for each in mine if each.ended and each not in ended]
    for mine in entries.values():
        assert [each for each in ended if each in mine] == mine
    assert ended.index(entries["c"][0]) <= 3, "one of a client with one waits for none of another's nine"
    assert ended.index(entries["b"][2]) <= 8


def test_unlike_generators_take_turns():
    adder, loner = Adder(), Loner()
    bench = Bench(max_running=5)
    one, other = bench.accept(request(adder, steps=8)), bench.accept(request(loner, steps=8))
    while not (one.ended or other.ended):
        bench.loop.tick()
        if one.state and other.state:
            assert abs(one.state.position - other.state.position) <= 1


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("start", "key")])
def test_the_innocent_of_a_failed_batch_live(fault):
    adder = Adder()
    good = [request(adder, seed, steps=4) for seed in (1, 2)]
    _, _, ends = run(good[0], request(adder, 3, steps=4, fault=fault, at=2), good[1])
    assert isinstance(ends[1], Failed)
    alone = [run(each)[2][0] for each in good]
    assert [ends[0], ends[2]] == alone


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "failed in step 1: ValueError: no step"),
        ("exit", "called sys.exit(3)"),
        ("count", "returned 0 states for 1"),
        ("type", "returned a int, expected a State"),
        ("none", "returned None, expected a list of states"),
        ("stay", "is still at position 0 of 3"),
        ("start", "failed in start: ValueError: no start"),
        ("finish", "failed in finish: OSError: no end"),
        ("wrong", "returned a int, expected studio.Text"),
        ("key", "batch key that is not hashable"),
    ],
)
def test_a_fault_is_named(fault, words):
    _, _, [end] = run(request(Adder(), fault=fault))
    assert words in end.error.message
    assert "adder" in end.error.message
    assert "Traceback" in end.error.traceback_text


def test_memory_errors_are_told_apart():
    _, _, [end] = run(request(Adder(), fault="memory"))
    assert isinstance(end.error, OutOfMemory)


def test_what_is_done_together_is_finished_together():
    crowd = Crowd()
    _, entries, ends = run(*(request(crowd, seed, steps=2) for seed in range(3)))
    assert crowd.finished == [3]
    assert ends == [run(entry.request)[2][0] for entry in entries]
    assert {entry.timing.finish for entry in entries} == {entries[0].timing.finish}


def test_other_keys_other_models_and_those_that_must_be_alone_are_finished_apart():
    crowd = Crowd()
    strict = ask(crowd, {"steps": 2}, 9, invariant=True)
    _, _, ends = run(
        request(crowd, 1, steps=2), request(crowd, 2, steps=2, group=7), strict, request(Crowd(), 4, steps=2)
    )
    assert crowd.finished == []
    assert all(isinstance(end, Finished) for end in ends)


@pytest.mark.parametrize("fault", ["finish", "wrong"])
def test_who_fails_in_a_shared_finish_fails_alone(fault):
    crowd = Crowd()
    good = [request(crowd, seed, steps=2) for seed in (1, 2)]
    _, _, ends = run(good[0], request(crowd, 3, steps=2, fault=fault), good[1])
    assert isinstance(ends[1], Failed)
    assert [ends[0], ends[2]] == [run(each)[2][0] for each in good]


def test_a_shared_finish_without_memory_is_made_narrower_and_says_so():
    crowd = Crowd()
    _, entries, ends = run(*(request(crowd, seed, steps=1, fault="crowd") for seed in range(3)))
    assert all(isinstance(end, Finished) for end in ends)
    assert "out of memory in finish at batch size 3: retrying with batch size 1" in entries[0].notices


class Odd(MemoryNeed):
    """A state that raises when it is looked at: its `fault` says what of it, and `at` from which position on."""

    def __getattribute__(self, name):
        get = object.__getattribute__
        if name == get(self, "fault") and get(self, "position") >= get(self, "at"):
            raise SystemExit(f"looked at {name}")
        return get(self, name)


class Hash:
    """A batch key that can be hashed a few times, and never compared."""

    def __init__(self, times):
        self.left = times

    def __hash__(self):
        self.left -= 1
        if self.left < 0:
            raise SystemExit("hashed")
        return 0  # as the keys of others

    def __eq__(self, other):
        raise SystemExit("compared")


class Sly(Adder):
    """Return states that raise when they are looked at, and have such properties."""

    name = "sly"
    property_fault = ""

    def start(self, model, inputs, rng):
        made = super().start(model, inputs, rng)
        return Odd(**{name: getattr(made, name) for name in made.__dataclass_fields__}) if inputs.fault else made

    def batch_key(self, state):
        return Hash(state.at) if state.fault == "hash" else super().batch_key(state)

    def __getattribute__(self, name):
        if name in object.__getattribute__(self, "property_fault").split():
            raise SystemExit(f"looked at {name}")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("looked_at", ["done", "position", "steps", "notices", "__dict__", "__class__", "hash"])
def test_a_state_that_raises_when_it_is_looked_at_ends_its_own_request(looked_at, at):
    sly, other = Sly(), Adder()
    good = [request(sly, 1, steps=4), request(other, 2, steps=4), request(sly, 3, steps=4)]
    bad = request(sly, 4, steps=4, fault=looked_at, at=at)
    _, _, ends = run(good[0], bad, *good[1:])
    assert [ends[0], *ends[2:]] == [run(each)[2][0] for each in good]
    assert isinstance(ends[1], Finished | Failed)


@pytest.mark.parametrize("name", ["version", "max_batch", "time_limit_s", "variant", "load", "step", "finish", "facts",
                                  "batch_key", "output", "streams", "dtype_for", "weights"])  # fmt: skip
def test_a_generator_whose_properties_raise_ends_its_own_requests(name):
    sly, other = Sly(), Adder()
    bench = Bench(max_running=5)
    bad = [bench.accept(request(sly, seed, steps=4)) for seed in (1, 2)]
    good = bench.accept(request(other, 3, steps=4))
    bench.loop.tick()
    sly.property_fault = name
    late = bench.accept(request(sly, 5, steps=4))
    bench.drain()
    assert isinstance(bench.events[good][-1], Finished)
    for entry in (*bad, late):
        end = bench.events[entry][-1]
        assert isinstance(end, Finished) or isinstance(end.error, GeneratorFailed)
    sly.property_fault = ""
    again = bench.accept(request(sly, 6, steps=4))
    bench.drain()
    assert isinstance(bench.events[again][-1], Finished)


class Talker(Adder):
    """Tell notices and previews."""

    name = "talker"

    def start(self, model, inputs, rng):
        return replace(super().start(model, inputs, rng), notices=("cut",))

    def step(self, model, states):
        return [
            replace(state, position=state.position + 1, value=state.value + 1, notices=(*state.notices, "more"))
            for state in states
        ]

    def preview(self, model, state):
        if state.position > 4:
            raise ValueError("no view")
        return studio.Text(str(state.position))


def test_notices_are_told_once_and_previews_when_asked():
    bench, [entry], [end] = run(request(Talker(), steps=8, preview_every=2))
    events = bench.events[entry]
    assert [event.text for event in events if isinstance(event, Notice)][:2] == ["cut", "more"]
    assert [event.position for event in events if isinstance(event, Preview)] == [2, 4]
    assert isinstance(end, Finished), "a failed preview costs only the preview"
    assert "no view" in entry.notices[-1]


def test_time_left_follows_the_pace():
    bench, [entry], _ = run(request(Adder(), steps=6))
    told = [event for event in bench.events[entry] if isinstance(event, Progress)]
    assert [event.position for event in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1].eta_s == 0
    assert all(a.eta_s > b.eta_s for a, b in pairwise(told))


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_the_state_is_released(end):
    adder = Adder()
    bench = Bench(max_running=5)
    entry = bench.accept(request(adder, steps=5, fault="raise" if end == "fail" else "", at=3))
    while entry.state is None or entry.state.position < 2:
        bench.loop.tick()
    state = weakref.ref(entry.state)
    if end == "cancel":
        bench.loop.cancel(entry)
    else:
        bench.loop.tick()
    assert entry.ended
    adder.batches.clear()
    gc.collect()
    assert state() is None


def test_after_a_failed_batch_newcomers_are_kept_out_of_it():
    adder = Adder()
    bench = Bench(max_running=5)
    bench.accept(request(adder, 1, steps=8))
    bench.accept(request(adder, 2, steps=8, fault="raise", at=1))
    for _ in range(3):  # two are admitted, and their batch fails
        bench.loop.tick()
    assert [len(batch) for batch in adder.batches] == [2]
    newcomer = bench.accept(request(adder, 3, steps=8))
    bench.drain()
    guilty = [batch for batch in adder.batches[1:] if any(state.fault for state in batch)]
    assert [len(batch) for batch in guilty] == [1]
    assert isinstance(bench.events[newcomer][-1], Finished)
    assert max(len(batch) for batch in adder.batches[2:]) == 2, "the innocent share again"


def test_to_cancel_what_has_ended_does_nothing():
    bench, [entry], [end] = run(request(Adder()))
    bench.loop.cancel(entry)
    assert bench.events[entry][-1] is end


class Staged(Adder):
    """Prefill alone, by a key of each request's own, then decode together."""

    name = "staged"
    max_batch = 6

    class Inputs(Adder.Inputs):
        steps: int = studio.field(40, ge=0, le=100, help="steps")

    def batch_key(self, state):
        return ("prefill", state.first) if state.position == 0 else "decode"


def test_requests_of_one_client_that_are_a_stage_behind_catch_up_with_the_oldest():
    bench = Bench(max_running=6)
    staged = Staged()
    entries = [bench.accept(request(staged, seed, steps=40)) for seed in range(6)]
    bench.drain()
    assert [entry.width_max for entry in entries] == [6] * 6
    assert min(entries, key=lambda entry: entry.recent[-1]) is entries[0], "the oldest is done first"


def test_requests_of_two_clients_that_take_turns_catch_up_too():
    bench = Bench(max_running=6)
    staged = Staged()
    for seed in range(3):
        for client in ("ann", "bob"):
            bench.accept(ask(staged, {"steps": 40}, seed, client=client))
    entries = list(bench.events)
    bench.drain()
    assert [entry.width_max for entry in entries] == [6] * 6


class Prompted(Staged):
    """Prefill by the length of the prompt, then decode together, on a clock that knows what a step costs."""

    name = "prompted"
    max_batch = 32

    def __init__(self, bench, noise):
        super().__init__()
        self.bench, self.noise, self.random, self.cost = bench, noise, random.Random(1), 0

    def step(self, model, states):
        cost = 50 * len(states) if states[0].position == 0 else 47 + 13 * len(states)
        self.bench.now += cost * (1 + self.noise * abs(self.random.gauss(0, 1)))  # of other work on the machine
        self.cost += cost
        return super().step(model, states)

    def batch_key(self, state):
        return "decode" if state.position else f"prefill {state.group.bit_length()}"


@pytest.mark.parametrize("noise", [0, 0.6])
def test_requests_of_unlike_prompts_take_hardly_longer_than_all_at_once(noise):
    bench = Bench(max_running=32, profile=Profile(), goal_s=1e6)
    prompted = Prompted(bench, noise)
    costs = []
    for _ in range(7):  # the batch sizes are learned in the first two
        prompted.cost = 0
        for seed in range(16):
            bench.accept(request(prompted, seed, steps=48, group=4 + 2 * seed))
        bench.drain()
        costs.append(prompted.cost)
    at_once = 16 * 50 + 47 * (47 + 13 * 16)
    assert sum(costs[2:]) / 5 <= 1.03 * at_once


class Plain(studio.Generator):
    """Return a text at once."""

    name = "plain"
    output = studio.Text

    def generate(self, model, inputs, rng):
        return studio.Text("done")


def test_memory_is_measured_at_each_start_and_in_the_first_steps_and_finishes_and_now_and_then():
    bench, plain, begun = Bench(), Plain(), []
    bench.begin = lambda *, first=False: begun.append(first)
    for seed in range(200):
        bench.accept(ask(plain, seed=seed))
        bench.drain()
    assert len(begun) == 200 + 2 * (64 + 3), "three of the others, after each 64"
