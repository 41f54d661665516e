"""Random schedules of everything at once, on a small device with an injected clock: admit, step, cancel, fail, run out
of memory, hang. Little generators with real weights and states do arithmetic whose result is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import studio
from studio.engine.calls.call import drive
from studio.engine.cost.profile import Profile
from studio.engine.events import CancelledEvent, Failed, Finished
from studio.engine.memory import model_cache
from studio.errors import GeneratorFailed, OutOfMemory, TimedOut
from tests.studio.engine.bench import Bench, ask

FAULTS = ("raise", "exit", "memory", "hang", "start", "finish")


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryNeed(studio.State):
    value: Any  # (1 + hold,) numbers, all alike
    first: int
    fault: str = ""
    at: int = 0


class Hang(Exception):
    """Stands for a call that does not return."""


class Adder(studio.Generator):
    """Add one in each step."""

    name = "adder"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, ge=0, le=8, help="steps")
        hold: int = studio.field(0, help="size of the state")
        fault: str = studio.field("", help="what goes wrong")
        at: int = studio.field(1, help="in which step")

    def __init__(self, name, weigh, take, max_batch):
        self.name, self.weigh, self.take, self.max_batch = name, weigh, take, max_batch
        self.device = None

    def load(self, ref, device, dtype):
        return np.full(self.weigh, 3, np.uint8)

    def start(self, model, inputs, rng):
        if inputs.fault == "start":
            raise ValueError("no start")
        first = rng.python.randrange(100)
        value = np.full(1 + inputs.hold, first, np.int64)
        return MemoryNeed(steps=inputs.steps, value=value, first=first, fault=inputs.fault, at=inputs.at)

    def step(self, model, states):
        assert model is not None
        assert len(model) == self.weigh
        for state in states:
            assert (state.value == state.first + state.position).all(), "a state was damaged"
        self.device.use(self, states)
        for state in states:
            if state.position + 1 >= state.at:
                self.go_wrong(state)
        return [replace(state, position=state.position + 1, value=state.value + 1) for state in states]

    def go_wrong(self, state):
        match state.fault:
            case "raise":
                raise ValueError("no step")
            case "exit":
                raise SystemExit(3)
            case "memory":
                raise MemoryError
            case "hang":
                raise Hang

    def finish(self, model, state):
        if state.fault == "finish":
            raise OSError("no end")
        return studio.Text(str(int(state.value[0])))

    def batch_key(self, state):
        return len(state.value)


class Device(Bench):
    """A loop on a device of `budget` bytes; its probe reads what the generators say they use."""

    def __init__(self, budget, most):
        super().__init__(budget=budget, max_running=most, profile=Profile())
        self.seen = set()
        self.hung = {}

    def resident(self):
        return self.ledger.used

    def use(self, generator, states):
        """Take memory for a step. What was taken before by such a step is known, and must fit."""
        self.last = generator.take * len(states)
        what = (generator.name, len(states[0].value), len(states))
        assert what not in self.seen or self.ledger.used + self.last <= self.ledger.budget, "over the budget, knowingly"
        if not any(state.fault and state.position + 1 >= state.at for state in states):
            self.seen.add(what)

    def tick(self):
        return drive(self.loop.turn(), self.run)

    def run(self, call):
        generator = call.generator
        try:
            return call.work()
        except Hang:
            self.hung[generator] = True
            raise TimedOut(generator, f"`{generator}` hangs", over=lambda: not self.hung[generator]) from None


class Schedules(RuleBasedStateMachine):
    @initialize(budget=st.integers(60, 400), most=st.integers(1, 6))
    def begin(self, budget, most):
        self.device = Device(budget, most)
        self.generators = [
            Adder("small", weigh=20, take=4, max_batch=4),
            Adder("large", weigh=100, take=30, max_batch=2),
            Adder("lone", weigh=50, take=0, max_batch=1),
        ]
        for generator in self.generators:
            generator.device = self.device
        self.cancelled = set()

    @rule(
        which=st.integers(0, 2),
        client=st.sampled_from("ab"),
        background=st.booleans(),
        steps=st.integers(0, 8),
        hold=st.sampled_from([0, 0, 4]),
        fault=st.sampled_from(["", "", "", "", *FAULTS]),
        at=st.integers(1, 8),
    )
    def accept(self, which, client, background, steps, hold, fault, at):
        generator = self.generators[which]
        inputs = {"steps": steps, "hold": hold, "fault": fault, "at": at}
        priority = "background" if background else "interactive"
        self.device.accept(ask(generator, inputs, steps, client=client, priority=priority))

    @rule(times=st.integers(1, 6))
    def tick(self, times):
        for _ in range(times):
            self.device.tick()

    @rule(data=st.data())
    def cancel(self, data):
        alive = [entry for entry in self.device.events if not entry.ended]
        if alive:
            entry = data.draw(st.sampled_from(alive))
            self.device.loop.cancel(entry)
            self.cancelled.add(entry)
            assert self.device.ledger.held(entry) == 0, "memory is back at once"

    @rule()
    def return_from_hanging(self):
        self.device.hung.update(dict.fromkeys(self.device.hung, False))

    @invariant()
    def it_adds_up(self):
        if not hasattr(self, "device"):
            return
        assert self.device.ledger.used <= self.device.ledger.budget
        for entry, events in self.device.events.items():
            assert [event.last for event in events].count(True) == entry.ended, "every request ends exactly once"
            assert not entry.ended or events[-1].last

    def teardown(self):
        if not hasattr(self, "device"):
            return
        self.device.drain()
        for entry, events in self.device.events.items():
            assert entry.ended, "nobody starves"
            self.check_end(entry, events[-1])
        resident = sum(model.size for model in self.device.loop.models.resident())
        assert self.device.ledger.used == resident, "only models are left"

    def check_end(self, entry, end):
        inputs = entry.request.inputs
        if entry in self.cancelled:
            assert isinstance(end, CancelledEvent)
        elif isinstance(end, Finished):
            in_steps = inputs.fault in ("raise", "exit", "memory", "hang") and inputs.at <= inputs.steps
            assert not in_steps
            assert inputs.fault not in ("start", "finish")
            first = studio.Rng(entry.request.spec.seed).python.randrange(100)
            assert end.media.text == str(first + inputs.steps), "the innocent get what they asked for"
        else:
            assert isinstance(end, Failed)
            assert isinstance(end.error, GeneratorFailed)
            own = inputs.fault != ""
            assert own or isinstance(end.error, OutOfMemory | TimedOut), "only room and hanging may fail the innocent"
            if isinstance(end.error, OutOfMemory) and not own:
                assert "fit" in end.error.message or "not enough memory" in end.error.message


def explore(examples):
    quiet = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model_cache, "release_freed", lambda device: None
        )  # collecting garbage tells nothing here, and takes half the time
        run_state_machine_as_test(Schedules, settings=quiet)


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_schedules(examples):
    explore(examples)
