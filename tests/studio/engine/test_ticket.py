"""Tickets: a bounded number of events, streams that lose no text, waiting in threads and in event loops."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.engine import CancelledEvent, Delta, Engine, Finished, Progress, Started
from studio.engine.events import Notice, Preview, Queued
from studio.engine.ticket import MAX_EVENTS, MAX_PREVIEWS, RequestLimit, Ticket
from studio.errors import Busy, Cancelled, EngineClosed, GeneratorFailed
from tests.studio.engine.bench import ask


@dataclass(frozen=True, kw_only=True, eq=False)
class Written(studio.State):
    text: str = ""


class Writer(studio.Generator):
    """Write a letter a step, when the gate is open."""

    name = "writer"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field("abc", help="what to write")
        wrong: str = studio.field("", help="what goes wrong")

    def __init__(self):
        self.gate = threading.Event()
        self.in_step = threading.Event()

    def start(self, model, inputs, rng):
        return Written(steps=len(inputs.text))

    def step(self, model, states):
        self.in_step.set()
        assert self.gate.wait(500)
        letters = "abcdefghij"
        return [
            replace(state, position=state.position + 1, text=state.text + letters[state.position % 10])
            for state in states
        ]

    def delta(self, model, state, start):
        return state.text[start:]

    def finish(self, model, state):
        return studio.Text(state.text)


def notify(ticket, *events):
    for event in events:
        ticket._emit(event)


def bare():
    return Ticket(ask(Writer()), cancel=lambda entry: None)


@pytest.fixture
def engine():
    with Engine("cpu") as made:
        yield made


@pytest.fixture
def writer():
    made = Writer()
    made.gate.set()
    return made


def test_events_are_numbered_and_a_cursor_goes_on(engine, writer):
    ticket = engine.submit(ask(writer))
    told = list(ticket.events())
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    for after in range(len(told)):
        assert list(ticket.events(after=after)) == told[after:]
    assert list(ticket.events(after=10**9)) == told[-1:], "the end is told to all"


def test_a_ticket_keeps_a_bounded_number_of_events():
    ticket = bare()
    notify(ticket, Queued(0), Started(3_000), Notice("early"))
    for position in range(3_000):
        notify(ticket, Progress(position, 3_000, 0.0, 0.0), Preview(position, studio.Text("x")))
    notify(ticket, Finished(studio.Text("end")))
    kept = list(ticket.events())
    assert len(kept) <= MAX_EVENTS
    assert [type(event) for event in kept[:3]] == [Queued, Started, Notice]
    assert kept[-1].number == 6_004
    assert kept[3].number > 4, "the gap says how many were dropped"
    assert [event.position for event in kept if isinstance(event, Progress)][-1] == 2_999
    assert sum(isinstance(event, Preview) for event in kept) <= MAX_PREVIEWS


def test_what_must_stay_stays_even_if_that_is_much():
    ticket = bare()
    notify(ticket, *(Notice(str(number)) for number in range(5 * MAX_EVENTS)))
    notify(ticket, Finished(studio.Text("end")))
    assert [event.text for event in ticket.events() if isinstance(event, Notice)] == [*map(str, range(5 * MAX_EVENTS))]


@given(st.lists(st.sampled_from(["delta", "progress", "notice", "read"]), min_size=1, max_size=60), st.integers(2, 12))
def test_no_text_is_lost_or_told_twice_however_late_it_is_read(kinds, most):
    with mock.patch("studio.engine.ticket.MAX_EVENTS", most):
        ticket = bare()
        stream_to_readers(ticket, kinds)


def stream_to_readers(ticket, kinds):
    readers, whole = [], ""
    for number, kind in enumerate(kinds):
        if kind == "delta":
            piece = f"<{number}>"
            notify(ticket, Delta(len(whole), piece))
            whole += piece
        elif kind == "read":
            readers.append([ticket.events(), ""])
        else:
            notify(ticket, Notice(str(number)) if kind == "notice" else Progress(number, 9, 0.0, 0.0))
        for reader in readers[::2]:  # half of them keep up
            while (found := ticket._find(reader[0]._after)) is not None:
                event = reader[0]._take(found)
                reader[1] += event.text if isinstance(event, Delta) else ""
    notify(ticket, Finished(studio.Text(whole)))
    readers.append([ticket.events(), ""])
    assert len(ticket._events.kept) <= 3 * kinds.count("notice") + 14
    for stream, said in readers:
        assert said + "".join(event.text for event in stream if isinstance(event, Delta)) == whole


def test_text_is_told_as_deltas(engine, writer):
    told = list(engine.submit(ask(writer, {"text": "abcd"}, stream=True)).events())
    assert [(event.start, event.text) for event in told if isinstance(event, Delta)] == [
        (0, "a"), (1, "b"), (2, "c"), (3, "d"),
    ]  # fmt: skip
    assert told[-1].media == "abcd"
    assert not [event for event in engine.submit(ask(writer)).events() if isinstance(event, Delta)], "only where asked"


def test_a_generator_that_gives_no_deltas_is_streamed_at_its_end(engine):
    class Whole(studio.Generator):
        """Write at once."""

        name, output = "whole", studio.Text

        def generate(self, model, inputs, rng):
            return studio.Text("all of it")

    told = list(engine.submit(ask(Whole(), stream=True)).events())
    assert [event.text for event in told if isinstance(event, Delta)] == ["all of it"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("type", "expected str"), ("raise", "no text"), ("back", "does not begin with the 3 char")],
)
def test_a_wrong_delta_fails_its_own_request_only(engine, wrong, words):
    class Wrong(Writer):
        """Do wrong."""

        max_batch = 4

        def start(self, model, inputs, rng):
            return replace(super().start(model, inputs, rng), notices=(inputs.wrong,) if inputs.wrong else ())

        def delta(self, model, state, start):
            if state.notices == ("type",):
                return 7
            if state.notices == ("raise",):
                raise ValueError("no text")
            return super().delta(model, state, start)

        def finish(self, model, state):
            return studio.Text(state.text.upper() if state.notices == ("back",) else state.text)

        def batch_key(self, state):
            return 0

    generator = Wrong()
    asked = [ask(generator, {"text": "abcd", "wrong": each}, stream=True) for each in ("", wrong, "")]
    tickets = engine.submit_many(asked)
    generator.gate.set()
    with pytest.raises(GeneratorFailed) as caught:
        tickets[1].result(500)
    assert words in caught.value.message
    assert [tickets[0].result(500), tickets[2].result(500)] == ["abcd", "abcd"]


def test_a_bounded_number_of_requests_is_accepted(writer):
    limit = RequestLimit(3)
    with Engine("cpu", limit=limit) as engine, Engine("cpu", limit=limit) as other:
        waiting = Writer()
        tickets = engine.submit_many([ask(waiting), ask(waiting)])
        with pytest.raises(Busy, match=r"2 requests are unfinished; with 2 more they exceed 3") as caught:
            other.submit_many([ask(writer), ask(writer)])
        assert "max_requests" in caught.value.hint
        other.submit(ask(writer)).result(500)
        assert other.submit(ask(writer)).result(500), "one that is refused or done does not count"
        tickets[0].cancel()
        waiting.gate.set()
        tickets[1].result(500)
        with pytest.raises(Cancelled):
            tickets[0].result(500)
        assert len(other.submit_many([ask(writer) for _ in range(3)])) == 3


def test_requests_to_a_closed_engine_do_not_count(writer):
    limit = RequestLimit(1)
    engine = Engine("cpu", limit=limit)
    engine.close()
    for _ in range(3):
        with pytest.raises(EngineClosed):
            engine.submit(ask(writer))
    with Engine("cpu", limit=limit) as other:
        assert other.submit(ask(writer)).result(500)


def test_tickets_are_awaited_in_any_event_loop(engine, writer):
    async def go():
        tickets = engine.submit_many([ask(writer) for _ in range(3)])
        made = await asyncio.gather(*tickets, tickets[0])
        assert await asyncio.wait_for(tickets[1], 500) == made[1]
        return made

    for _ in range(2):  # each run has a loop of its own
        assert asyncio.run(go()) == ["abc"] * 4


def test_events_are_followed_in_an_event_loop(engine):
    writer = Writer()

    async def go():
        ticket = engine.submit(ask(writer, stream=True))
        seen = []
        async for event in ticket:
            seen.append(event)
            if isinstance(event, Started):
                writer.gate.set()
        assert seen == [event async for event in ticket.events()]
        assert seen[2:] == [event async for event in ticket.events(after=2)]
        assert seen == list(ticket.events())
        return seen

    seen = asyncio.run(go())
    assert "".join(event.text for event in seen if isinstance(event, Delta)) == "abc"
    assert isinstance(seen[-1], Finished)


def test_a_request_that_fails_raises_where_it_is_awaited(engine):
    class Bad(studio.Generator):
        """Fail."""

        name, output = "bad", studio.Text

        def generate(self, model, inputs, rng):
            raise ValueError("no")

    async def go():
        await engine.submit(ask(Bad()))

    with pytest.raises(GeneratorFailed, match="no"):
        asyncio.run(go())


@pytest.mark.parametrize("how", ["await", "events"])
def test_a_task_that_is_cancelled_cancels_the_request(engine, how):
    writer = Writer()

    async def follow(ticket):
        if how == "await":
            await ticket
        async for _ in ticket:
            pass

    async def go():
        ticket = engine.submit(ask(writer, {"text": "a" * 1000}))
        task = asyncio.create_task(follow(ticket))
        await asyncio.to_thread(writer.in_step.wait, 500)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        writer.gate.set()
        return ticket

    ticket = asyncio.run(go())
    with pytest.raises(Cancelled):
        ticket.result(500)
    assert isinstance(list(ticket.events())[-1], CancelledEvent)
    assert not ticket._wakers


def test_an_event_loop_that_was_closed_is_forgotten(engine):
    writer = Writer()
    loop = asyncio.new_event_loop()
    ticket = engine.submit(ask(writer))
    task = loop.create_task(ticket._next(None))
    while not ticket._wakers:
        loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False
    loop.close()
    writer.gate.set()
    assert ticket.result(500) == "abc"
    task.get_coro().close()
