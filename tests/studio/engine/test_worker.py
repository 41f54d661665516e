"""The worker: its calls, those that hang, what is done later, and its end."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import pytest

import studio
from studio.engine import Engine
from studio.engine.calls import call as calls
from studio.engine.calls.call import run_inline
from studio.errors import EngineClosed, GeneratorFailed, NotStored, StoreError, TimedOut
from studio.store import Store
from tests.studio.engine.bench import ask

WAIT_S = 500.0  # what only a test that fails waits for


@dataclass(frozen=True, kw_only=True, eq=False)
class Counting(studio.State):
    hangs_at: int


class Waiting(studio.Generator):
    """Wait in one step until told to go on; remember the threads that steps ran in. That step alone has a short limit:
    a machine under load may take its time for all others.
    """

    name = "waiting"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, help="steps")
        hangs_at: int = studio.field(-1, help="the position at which it waits")

    def __init__(self):
        self.go, self.waits, self.threads = threading.Event(), threading.Event(), []
        self.short_s = self.time_limit_s

    def start(self, model, inputs, rng):
        self.look_ahead(0, inputs.hangs_at)
        return Counting(steps=inputs.steps, hangs_at=inputs.hangs_at)

    def step(self, model, states):
        self.threads.append(threading.current_thread())
        if states[0].position == states[0].hangs_at:
            self.waits.set()
            self.go.wait(WAIT_S)
        self.look_ahead(states[0].position + 1, states[0].hangs_at)
        return [replace(state, position=state.position + 1) for state in states]

    def look_ahead(self, position, hangs_at):
        self.time_limit_s = self.short_s if position == hangs_at else Waiting.time_limit_s

    def finish(self, model, state):
        return studio.Text(f"{state.position} steps")


def request(generator, short_s=None, **inputs):
    generator.short_s = short_s or generator.short_s
    return ask(generator, inputs)


def test_a_call_that_hangs_is_abandoned_and_others_go_on():
    hanging, good = Waiting(), Waiting()
    with Engine("cpu") as engine:
        stuck, witness = engine.submit_many([request(hanging, 0.1, hangs_at=1), request(good, steps=50)])
        with pytest.raises(TimedOut, match=r"`waiting` did not return within 0\.1 s"):
            stuck.result(WAIT_S)
        assert witness.result(WAIT_S).text == "50 steps"
        with pytest.raises(TimedOut):
            engine.submit(request(hanging)).result(WAIT_S)  # no more work while it hangs
        hanging.go.set()
        hanging.threads[-1].join(WAIT_S)
        assert engine.submit(request(hanging)).result(WAIT_S).text == "3 steps", "the call has returned"
        assert hanging.threads[1] is not hanging.threads[-1]


def test_one_hang_after_another_is_survived():
    generators = [Waiting() for _ in range(4)]
    with Engine("cpu") as engine:
        for each in generators:
            with pytest.raises(TimedOut):
                engine.submit(request(each, 0.05, hangs_at=0)).result(WAIT_S)
        assert engine.submit(request(Waiting())).result(WAIT_S).text == "3 steps"
    for each in generators:
        each.go.set()


def test_a_shorter_limit_is_kept_while_the_watchdog_sleeps_for_a_longer_one():
    with Engine("cpu") as engine:
        engine.submit(request(Waiting())).result(WAIT_S)
        hanging = Waiting()
        asked = ask(hanging, {"hangs_at": 0}, time_limit_s=0.1)
        with pytest.raises(TimedOut, match=r"within 0\.1 s"):
            engine.submit(asked).result(WAIT_S)
        hanging.go.set()


@pytest.mark.parametrize("kind", [GeneratorExit, StopIteration, SystemExit, KeyboardInterrupt, TimeoutError])
def test_whatever_a_plugin_raises_ends_its_own_request(kind):
    class Raising(Waiting):
        """Raise it."""

        def step(self, model, states):
            raise kind

    with Engine("cpu") as engine:
        with pytest.raises(GeneratorFailed):
            engine.submit(request(Raising())).result(WAIT_S)
        assert engine.submit(request(Waiting())).result(WAIT_S).text == "3 steps"


class Slow(Store):
    """A store that waits before it writes."""

    def __init__(self, root):
        super().__init__(root)
        self.go, self.begun, self.fails = threading.Event(), threading.Event(), False

    def put(self, media):
        self.begun.set()
        self.go.wait(WAIT_S)
        if self.fails:
            raise StoreError("the disk is full")
        return super().put(media)


def test_steps_go_on_while_what_was_made_is_written(tmp_path):
    store, other = Slow(tmp_path), Waiting()
    with Engine("cpu", store=store) as engine:
        first, second = engine.submit_many([request(Waiting(), steps=1), request(other, steps=40, hangs_at=30)])
        assert other.waits.wait(WAIT_S)
        assert not first.done
        first.cancel()  # its work is done: that comes too late
        store.go.set()
        other.go.set()
        assert first.result(WAIT_S).path.exists()
        assert second.result(WAIT_S).path.exists()


def test_what_cannot_be_written_fails_its_request(tmp_path):
    store = Slow(tmp_path)
    store.fails = True
    store.go.set()
    with Engine("cpu", store=store) as engine, pytest.raises(NotStored, match="full") as caught:
        engine.submit(request(Waiting())).result(WAIT_S)
    assert caught.value.media.text == "3 steps"  # which whoever asked may write elsewhere
    assert caught.value.media.recipe is not None


class Lazy(studio.Text):
    """A text that is encoded when its generator is told."""

    maker = None

    @property
    def data(self):
        if self.maker is not None and not self.maker.go.is_set():
            self.maker.encoders.append(threading.current_thread())
            self.maker.go.wait(WAIT_S)
        return super().data


class Lazily(Waiting):
    """Make a text that is not encoded until told."""

    name = "lazily"

    def __init__(self):
        super().__init__()
        self.encoders = []

    def finish(self, model, state):
        text = Lazy(f"{state.position} steps")
        text.maker = self
        self.time_limit_s = Waiting.time_limit_s if self.go.is_set() else self.short_s
        return text


def test_media_that_are_never_encoded_hold_up_nobody_else(tmp_path):
    hanging = [Lazily() for _ in range(6)]  # more than there are archivists
    with Engine("cpu", store=Store(tmp_path)) as engine:
        stuck = engine.submit_many([request(each, 0.05) for each in hanging])
        for ticket in stuck:
            with pytest.raises(TimedOut, match=r"`lazily` did not return within 0\.05 s"):
                ticket.result(WAIT_S)
        assert engine.submit(request(Waiting())).result(WAIT_S).path.exists()
        with pytest.raises(TimedOut):
            engine.submit(request(hanging[0])).result(WAIT_S)  # no more work while it hangs
        for each in hanging:
            each.go.set()
            for thread in each.encoders:
                thread.join(WAIT_S)
                assert not thread.is_alive(), "it ends when it comes back"
        assert engine.submit(request(hanging[0])).result(WAIT_S).text == "3 steps"


def test_steps_go_on_while_a_text_is_encoded(tmp_path):
    slow, other = Lazily(), Waiting()
    with Engine("cpu", store=Store(tmp_path)) as engine:
        first = engine.submit(request(slow))
        assert engine.submit(request(other, steps=20)).result(WAIT_S).text == "20 steps"
        assert not first.done
        slow.go.set()
        assert first.result(WAIT_S).text == "3 steps"


def test_closing_waits_for_what_is_being_written(tmp_path):
    store = Slow(tmp_path)
    engine = Engine("cpu", store=store)
    ticket = engine.submit(request(Waiting(), steps=1))
    assert store.begun.wait(WAIT_S)
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert closing.is_alive()
    store.go.set()
    closing.join(WAIT_S)
    assert ticket.result(0).path.exists()
    with pytest.raises(EngineClosed):
        engine.submit(request(Waiting()))


def test_closing_beside_a_call_that_hangs_waits_no_longer_than_its_limit():
    hanging = Waiting()
    engine = Engine("cpu")
    ticket = engine.submit(request(hanging, 0.3, hangs_at=0))
    assert hanging.waits.wait(WAIT_S)
    engine.close()
    assert ticket.done
    hanging.go.set()


def test_a_calling_is_given_what_its_calls_return_and_raise():
    def both():
        first = yield from calls.ask("x", lambda: 20, 1)
        try:
            yield from calls.ask("x", lambda: 1 // 0, 1)
        except ZeroDivisionError:
            return first + 1

    assert run_inline(both()) == 21
