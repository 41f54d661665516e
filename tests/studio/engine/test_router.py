"""Several engines side by side: where requests go, and that nothing is lost on the way."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path

import pytest

import studio
from studio import devices
from studio.engine.engine import Engine
from studio.engine.router import Router
from studio.errors import EngineClosed
from tests.studio.engine.bench import ask


class Sleeper(studio.Generator):
    """Sleep in each step; loading takes time too."""

    name = "sleeper"
    output = studio.Text

    class Inputs(studio.Inputs):
        pause: float = studio.field(0.002, help="seconds")

    def __init__(self, name="sleeper", load_s=0.0):
        self.name, self.load_s, self.loads = name, load_s, 0

    def load(self, ref, device, dtype):
        time.sleep(self.load_s)
        self.loads += 1
        return object()

    def generate(self, model, inputs, rng):
        time.sleep(inputs.pause)
        return studio.Text(str(rng.seed))


@pytest.fixture
def router():
    numbers = itertools.count(1)
    made = Router([Engine("cpu", numbers=numbers) for _ in range(3)])
    yield made
    made.close()


def requests(generator, count, pause=0.002):
    return [ask(generator, {"pause": pause}, seed) for seed in range(count)]


def places(router):
    return [len(queue.open) for queue in router._queues]


def test_all_come_back_in_order_and_numbers_are_unlike(router):
    tickets = router.submit_many(requests(Sleeper(), 30))
    assert [ticket.result(500).text for ticket in tickets] == [str(seed) for seed in range(30)]
    assert len({ticket._entry.number for ticket in tickets}) == 30


def test_work_that_costs_more_than_a_load_is_spread_evenly(router):
    router.submit_many(requests(Sleeper(), 30, 0.5))
    assert max(places(router)) - min(places(router)) <= 6


def test_a_few_stay_where_the_model_is(router):
    generator = Sleeper(load_s=0.3)
    for count in (1, 2, 3):
        for ticket in router.submit_many(requests(generator, count)):
            ticket.result(500)
    assert generator.loads == 1


def test_a_long_wait_is_worth_a_load(router):
    generator = Sleeper(load_s=0.05)
    router.submit_many(requests(generator, 1))[0].result(500)
    for ticket in router.submit_many(requests(generator, 400)):
        ticket.result(500)
    assert generator.loads == 3


def test_two_models_end_up_on_two_devices(router):
    one, other = Sleeper("one", 0.2), Sleeper("other", 0.2)
    router.submit_many(requests(one, 3, 0.3))
    router.submit_many(requests(other, 1))
    owners = [{ticket.request.spec.generator for ticket in queue.open} for queue in router._queues]
    assert Counter(name for names in owners for name in names) == {"one": 1, "other": 1}
    assert {"one", "other"} not in owners


def test_a_named_device_is_obeyed_and_a_closed_router_refuses():
    router = Router([Engine("cpu"), Engine("cpu")])
    router.engines[1].device = "cpu-2"
    tickets = router.submit_many(requests(Sleeper(), 6), "cpu-2")
    assert places(router) == [0, 6]
    for ticket in tickets:
        ticket.result(500)
    router.close()
    with pytest.raises(EngineClosed):
        router.submit_many(requests(Sleeper(), 1))


def test_what_is_done_no_longer_counts(router):
    generator = Sleeper()
    for ticket in router.submit_many(requests(generator, 5)):
        ticket.result(500)
    router.submit_many(requests(generator, 1))[0].result(500)
    for queue in router._queues:
        queue.tidy()
        assert queue.backlog_s() == 0
    assert 0 < max(queue.took.get("sleeper", 0) for queue in router._queues) < 1


def test_a_studio_of_two_engines(tmp_path: Path, monkeypatch):
    """Files, trace and status of both, as far as that goes on one processor."""
    monkeypatch.setattr(devices, "choose_many", lambda wanted: ("cpu", "cpu"))
    trace = tmp_path / "trace.json"
    with studio.Studio(
        home=tmp_path / "home", plugins=[Path(__file__).with_name("toy_plugin.py")], trace=trace
    ) as host:
        tickets = host.submit_many("chain", 12, steps=60, seed=3, pause=0.004)
        assert sum(bool(queue.open) for queue in host.router._queues) == 2
        while len(told := [each for each in host.running() if each["unfinished"]]) < 2:
            assert not all(ticket.done for ticket in tickets), "both are seen while they run"
            time.sleep(0.01)
        shown = [(each["pid"], row["request"]) for each in told for row in each["requests"]]
        assert len(set(shown)) == len(shown)
        texts = [ticket.result(500).text for ticket in tickets]
        alone = [host.generate("chain", steps=60, seed=3 + index, pause=0).text for index in range(12)]
        assert texts == alone
        assert "studio_requests_unfinished 0" in host.metrics()
    text = trace.read_text()
    assert text.count('"thread_name"') == 2
    assert not list((tmp_path / "home" / "running").glob("*"))
