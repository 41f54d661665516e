"""The worker thread: waiting, cancelling, interrupting, closing."""

from __future__ import annotations

import gc
import re
import signal
import threading
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import studio
from studio.engine import CancelledEvent, Engine, Failed, Finished, Progress, Started
from studio.errors import Cancelled, EngineClosed, GeneratorFailed, StoreError, UsageError
from studio.store import Store
from tests.studio.engine.bench import Ideal, ask


@dataclass(frozen=True, kw_only=True, eq=False)
class Held(studio.State):
    payload: Any = None


class Payload:
    """Something whose life can be watched."""


class Gated(studio.Generator):
    """Step only when the gate is open."""

    name = "gated"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, ge=1, help="steps")

    def __init__(self):
        self.gate = threading.Event()
        self.in_step = threading.Event()
        self.calls = 0
        self.payload = None

    def start(self, model, inputs, rng):
        payload = Payload()
        self.payload = weakref.ref(payload)
        return Held(steps=inputs.steps, payload=payload)

    def step(self, model, states):
        self.calls += 1
        self.in_step.set()
        assert self.gate.wait(500)
        return [replace(state, position=state.position + 1) for state in states]

    def finish(self, model, state):
        return studio.Text("done")


class Bad(studio.Generator):
    """Fail."""

    name = "bad"
    output = studio.Text

    def generate(self, model, inputs, rng):
        raise SystemExit("no")


def request(generator, **inputs):
    return ask(generator, inputs)


@pytest.fixture
def engine():
    with Engine("cpu") as made:
        yield made


def test_events_can_be_followed_while_it_runs(engine):
    gated = Gated()
    ticket = engine.submit(request(gated))
    kinds = []
    for event in ticket.events():
        kinds.append(type(event))
        if isinstance(event, Started):
            gated.gate.set()
    assert kinds[-4:] == [Progress, Progress, Progress, Finished]
    assert [type(event) for event in ticket.events()] == kinds, "a second reader sees the same"
    assert ticket.result().text == "done"
    assert ticket.timing.steps > 0


def test_cancel_takes_effect_within_one_step(engine):
    gated = Gated()
    ticket = engine.submit(request(gated, steps=100))
    assert gated.in_step.wait(500)
    ticket.cancel()
    gated.gate.set()
    with pytest.raises(Cancelled):
        ticket.result(500)
    assert gated.calls == 1
    gc.collect()
    assert gated.payload() is None, "the state is released"


def test_ctrl_c_while_waiting_cancels(engine):
    gated = Gated()
    ticket = engine.submit(request(gated, steps=100))
    assert gated.in_step.wait(500)
    main = threading.main_thread().ident
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ticket.result()
    timer.join()
    gated.gate.set()
    assert [event for event in ticket.events() if event.last] == [CancelledEvent()]
    assert gated.calls == 1


def test_a_failing_plugin_fails_its_own_request_only(engine):
    gated = Gated()
    gated.gate.set()
    tickets = engine.submit_many([request(gated), request(Bad()), request(gated)])
    with pytest.raises(GeneratorFailed, match=r"sys\.exit"):
        tickets[1].result(500)
    assert [tickets[0].result(500).text, tickets[2].result(500).text] == ["done", "done"]
    assert engine.submit(request(gated)).result(500).text == "done"


def test_requests_given_at_once_start_before_any_steps():
    class Shared(Gated):
        """Share steps."""

        widths = ()

        def step(self, model, states):
            self.widths = (*self.widths, len(states))
            return super().step(model, states)

        def batch_key(self, state):
            return 0

    shared = Shared()
    shared.gate.set()
    with Engine("cpu", profile=Ideal()) as engine:
        for ticket in engine.submit_many([request(shared) for _ in range(4)]):
            recipe = ticket.result(500).recipe
            assert (recipe.batch_width.min, recipe.batch_width.max) == (4, 4)
    assert shared.widths == (4, 4, 4)


def test_a_result_can_be_waited_for_in_vain(engine):
    gated = Gated()
    ticket = engine.submit(request(gated))
    with pytest.raises(TimeoutError):
        ticket.result(0.01)
    gated.gate.set()
    assert ticket.result(500)


def test_closing_cancels_what_is_left():
    gated = Gated()
    engine = Engine("cpu")
    tickets = engine.submit_many([request(gated, steps=50) for _ in range(3)])
    assert gated.in_step.wait(500)
    threading.Timer(0.05, gated.gate.set).start()
    engine.close()
    engine.close()
    assert [list(ticket.events())[-1] for ticket in tickets] == [CancelledEvent()] * 3
    with pytest.raises(EngineClosed):
        engine.submit(request(gated))


def test_an_engine_let_go_of_ends_its_threads():
    before = set(threading.enumerate())
    engine = Engine("cpu")
    gated = Gated()
    gated.gate.set()
    engine.submit(request(gated)).result(500)
    threads = set(threading.enumerate()) - before
    assert {thread.name.split("_")[0] for thread in threads} == {"studio-engine", "studio-watchdog", "studio-archivist"}
    del engine
    gc.collect()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_idle_costs_nothing():
    others = set(threading.enumerate())  # such as those of a server that serves several modules of tests
    with Engine("cpu") as engine:
        gated = Gated()
        gated.gate.set()
        engine.submit(request(gated)).result(500)
        for _ in range(100):  # until what was left to do is done, on a machine that may be busy
            before = wakes(others)
            time.sleep(0.3)
            if before and wakes(others) == before:
                return
        raise AssertionError(f"its threads wake up while there is nothing to do: {wakes(others)}")


def wakes(others):
    """How often each thread of an engine has gone to sleep, as Linux counts it; `others` are not counted."""
    told = {}
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("studio-"):
            status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
            told[thread.name, thread.native_id] = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M)[1]
    return told


def test_what_is_made_carries_recipe_and_path(tmp_path):
    gated = Gated()
    gated.gate.set()
    with Engine("cpu", store=Store(tmp_path)) as engine:
        media = engine.submit(request(gated, steps=2)).result(500)
    assert media.path.read_bytes() == b"done"
    recipe = media.recipe
    assert (recipe.spec.generator, recipe.steps, recipe.spec.seed, recipe.spec.inputs) == ("gated", 2, 1, {"steps": 2})
    assert recipe.output == media.ref
    assert recipe.created.endswith("+00:00")


def test_a_store_that_cannot_write_fails_the_request(tmp_path):
    (tmp_path / "objects").write_text("in the way")
    gated = Gated()
    gated.gate.set()
    with Engine("cpu", store=Store(tmp_path)) as engine:
        event = list(engine.submit(request(gated)).events())[-1]
    assert isinstance(event, Failed)
    assert isinstance(event.error, StoreError)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "", "CPU"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(UsageError, match="must be `cpu`"):
        Engine(device)
