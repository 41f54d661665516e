"""The worker: its calls, those that hang, what is done later, and its end."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import pytest

import studio
from studio.engine import Engine
from studio.engine.calls import ask, directly
from studio.engine.request import Request
from studio.errors import EngineClosed, GeneratorFailed, NotStored, StoreError, TimedOut
from studio.recipe import PluginRef
from studio.store import Store

PLUGIN = PluginRef(name="tests", version="0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Counting(studio.State):
    hangs_at: int


class Waiting(studio.Generator):
    """Wait in one step until told to go on; remember the threads that steps ran in."""

    name = "waiting"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, help="steps")
        hangs_at: int = studio.field(-1, help="the position at which it waits")

    def __init__(self):
        self.go, self.threads = threading.Event(), []

    def start(self, model, inputs, rng):
        return Counting(steps=inputs.steps, hangs_at=inputs.hangs_at)

    def step(self, model, states):
        self.threads.append(threading.current_thread())
        if states[0].position == states[0].hangs_at:
            self.go.wait(30)
        return [replace(state, position=state.position + 1) for state in states]

    def finish(self, model, state):
        return studio.Text(f"{state.position} steps")


def request(generator, limit_s=None, **inputs):
    return Request(generator, generator.Inputs.parse(inputs), 1, PLUGIN, time_limit_s=limit_s)


def test_a_call_that_hangs_is_abandoned_and_others_go_on():
    hanging, good = Waiting(), Waiting()
    with Engine("cpu") as engine:
        stuck, witness = engine.submit_many([request(hanging, 0.1, hangs_at=1), request(good, steps=50)])
        with pytest.raises(TimedOut, match=r"`waiting` did not return within 0\.1 s"):
            stuck.result(30)
        assert witness.result(30).text == "50 steps"
        with pytest.raises(TimedOut):
            engine.submit(request(hanging)).result(30)  # no more work while it hangs
        hanging.go.set()
        hanging.threads[-1].join(30)
        assert engine.submit(request(hanging)).result(30).text == "3 steps", "the call has returned"
        assert hanging.threads[1] is not hanging.threads[-1]


def test_one_hang_after_another_is_survived():
    generators = [Waiting() for _ in range(4)]
    with Engine("cpu") as engine:
        for each in generators:
            with pytest.raises(TimedOut):
                engine.submit(request(each, 0.05, hangs_at=0)).result(30)
        assert engine.submit(request(Waiting(), 5.0)).result(30).text == "3 steps"
    for each in generators:
        each.go.set()


def test_a_shorter_limit_is_kept_while_the_watchdog_sleeps_for_a_longer_one():
    with Engine("cpu") as engine:
        engine.submit(request(Waiting(), 500.0)).result(30)
        hanging = Waiting()
        begun = time.monotonic()
        with pytest.raises(TimedOut):
            engine.submit(request(hanging, 0.1, hangs_at=0)).result(30)
        assert time.monotonic() - begun < 10
        hanging.go.set()


@pytest.mark.parametrize("kind", [GeneratorExit, StopIteration, SystemExit, KeyboardInterrupt, TimeoutError])
def test_whatever_a_plugin_raises_ends_its_own_request(kind):
    class Raising(Waiting):
        """Raise it."""

        def step(self, model, states):
            raise kind

    with Engine("cpu") as engine:
        with pytest.raises(GeneratorFailed):
            engine.submit(request(Raising())).result(30)
        assert engine.submit(request(Waiting())).result(30).text == "3 steps"


class Slow(Store):
    """A store that waits before it writes."""

    def __init__(self, root):
        super().__init__(root)
        self.go, self.fails = threading.Event(), False

    def put(self, media):
        self.go.wait(30)
        if self.fails:
            raise StoreError("the disk is full")
        return super().put(media)


def test_steps_go_on_while_what_was_made_is_written(tmp_path):
    store, other = Slow(tmp_path), Waiting()
    with Engine("cpu", store=store) as engine:
        first, second = engine.submit_many([request(Waiting(), steps=1), request(other, steps=40, hangs_at=30)])
        until = time.monotonic() + 30
        while len(other.threads) < 31:  # it is in the step that waits
            assert time.monotonic() < until
            time.sleep(0.001)
        assert not first.done
        first.cancel()  # its work is done: that comes too late
        store.go.set()
        other.go.set()
        assert first.result(30).path.exists()
        assert second.result(30).path.exists()


def test_what_cannot_be_written_fails_its_request(tmp_path):
    store = Slow(tmp_path)
    store.fails = True
    store.go.set()
    with Engine("cpu", store=store) as engine, pytest.raises(NotStored, match="full") as caught:
        engine.submit(request(Waiting())).result(30)
    assert caught.value.media.text == "3 steps"  # which whoever asked may write elsewhere
    assert caught.value.media.recipe is not None


def test_closing_waits_for_what_is_being_written(tmp_path):
    store = Slow(tmp_path)
    engine = Engine("cpu", store=store)
    ticket = engine.submit(request(Waiting(), steps=1))
    threading.Timer(0.2, store.go.set).start()
    while not ticket._entry.released:  # it stays so
        time.sleep(0.001)
    engine.close()
    assert ticket.result(0).path.exists()
    with pytest.raises(EngineClosed):
        engine.submit(request(Waiting()))


def test_closing_beside_a_call_that_hangs_waits_no_longer_than_its_limit():
    hanging = Waiting()
    engine = Engine("cpu")
    ticket = engine.submit(request(hanging, 0.3, hangs_at=0))
    while not hanging.threads:
        time.sleep(0.001)
    engine.close()
    assert ticket.done
    hanging.go.set()


def test_a_calling_is_given_what_its_calls_return_and_raise():
    def both():
        first = yield from ask("x", lambda: 20, 1)
        try:
            yield from ask("x", lambda: 1 // 0, 1)
        except ZeroDivisionError:
            return first + 1

    assert directly(both()) == 21
