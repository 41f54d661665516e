"""Whose turn it is: classes, shares, no hoarded credit, no starvation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from studio.engine.fair_queue import BACKGROUND_SHARE, Order, Work


@dataclass(eq=False)
class Job:
    client: str = ""
    background: bool = False
    cost: float = 1.0
    lane: str = ""


def start(order, *jobs):
    for job in jobs:
        order.accept(job)
    for _ in jobs:
        work, job = order.next()
        assert work is Work.ADMIT
        order.admitted(job)


def serve(order, seconds):
    """Let the order choose steps for so many seconds; who got how many."""
    got = Counter()
    while sum(got.values()) < seconds:
        work, job = order.next()
        assert work is Work.STEP
        order.served(job, job.cost)
        got[job] += job.cost
    return got


def test_clients_share_by_seconds_not_by_requests():
    order = Order(32)
    one, many, slow = Job("one"), [Job("many") for _ in range(5)], Job("slow", cost=7.0)
    start(order, one, *many, slow)
    got = serve(order, 630)
    assert abs(got[one] - 210) <= 8
    assert abs(got[slow] - 210) <= 8
    assert got[many[0]] == sum(got[job] for job in many), "a client's own are finished in the order they came"


def test_background_gives_way_but_keeps_a_share():
    order = Order(32)
    start(order, back := Job("a", background=True))
    start(order, front := Job("a"))
    got = serve(order, 1600)
    assert abs(got[back] / 1600 - BACKGROUND_SHARE) < 0.005
    order.removed(front)
    assert serve(order, 10)[back] == 10, "alone it has all"


def test_a_newcomer_is_next_and_earns_no_credit_by_idling():
    order = Order(32)
    start(order, old := Job("old"))
    serve(order, 100)
    order.accept(new := Job("new"))
    assert order.next() == (Work.ADMIT, new), "within one step"
    order.admitted(new)
    got = serve(order, 20)
    assert abs(got[old] - got[new]) <= 1


def test_an_interactive_request_comes_before_any_background_work():
    order = Order(32)
    start(order, *[Job("b", background=True) for _ in range(3)])
    serve(order, 50)
    for _ in range(3):
        order.accept(Job("b", background=True))
    order.accept(new := Job("i"))
    assert order.next() == (Work.ADMIT, new)
    order.admitted(new)
    for _ in range(10):
        assert order.next()[1] is new
        order.served(new, 1.0)


def test_a_debt_is_not_forgotten_by_leaving():
    order = Order(32)
    start(order, quick := Job("q"), greedy := Job("g", cost=100.0))
    order.served(greedy, 100.0)
    order.removed(greedy)
    start_again = Job("g")
    order.accept(start_again)
    for _ in range(90):
        assert order.next()[1] is quick
        order.served(quick, 1.0)


def test_what_finds_no_room_stands_aside_until_something_is_released():
    order = Order(32)
    start(order, one := Job(), other := Job())
    order.accept(waiting := Job("w"))
    order.block(waiting)
    order.park(one)
    assert serve(order, 3)[other] == 3
    assert order.parked == [one]
    order.removed(other)
    assert {order.next()[1]} <= {one, waiting}
    assert not order.parked
    assert set(order.jobs()) == {one, waiting}


def test_a_client_has_only_so_many_on_the_way():
    order = Order(2)
    first = [Job("a") for _ in range(4)]
    start(order, *first[:2])
    for job in first[2:]:
        order.accept(job)
    assert order.next()[0] is Work.STEP
    order.accept(other := Job("b"))
    assert order.next() == (Work.ADMIT, other)
    order.removed(other)
    order.removed(first[0])
    assert order.next() == (Work.ADMIT, first[2])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("aaabc"), st.booleans(), st.floats(0.1, 5)), min_size=1, max_size=12))
def test_nobody_starves(given_jobs):
    order = Order(3)
    left = {Job(client, background, cost): 3 for client, background, cost in given_jobs}
    for job in left:
        order.accept(job)
    for _ in range(len(left) * 4 + 1):
        due = order.next()
        if due is None:
            break
        work, job = due
        if work is Work.ADMIT:
            order.admitted(job)
            continue
        left[job] -= 1
        order.served(job, job.cost)
        if not left[job]:
            order.removed(job)
    assert not any(left.values())
    assert len(order) == 0


JOBS = st.tuples(st.sampled_from("aab"), st.booleans(), st.floats(0.1, 5), st.sampled_from("xyy"), st.integers(1, 4))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(JOBS, min_size=1, max_size=12),
    st.integers(1, 4),
    st.lists(st.sampled_from(["serve", "park", "block", "accept"]), max_size=60),
    st.integers(1, 3),
)
def test_the_jobs_of_a_lane_end_in_the_order_they_came(given_jobs, most, does, wanted):
    """Whatever is parked and blocked on the way; and no more run in a lane than are wanted beside its oldest."""
    order, left, ended = Order(most), {}, []
    coming = [(Job(client, background, cost, lane), steps) for client, background, cost, lane, steps in given_jobs]
    came = [job for job, _ in coming]
    running, parked = set(), set()

    def lane(job):
        return job.client, job.background, job.lane

    def enough(oldest):
        assert oldest in running - parked
        return sum(lane(each) == lane(oldest) for each in running - parked) >= wanted

    doing = iter([*does, *["accept"] * len(coming), *["serve"] * 500])
    for what in doing:
        if what == "accept" and coming:
            job, left[job] = coming.pop(0)
            order.accept(job)
            continue
        due = order.next(enough)
        if due is None:
            order.released()
            parked.clear()
            continue
        work, job = due
        if work is Work.ADMIT:
            if what == "block":
                order.block(job)
                continue
            assert sum(lane(each) == lane(job) for each in running - parked) < wanted
            order.admitted(job)
            running.add(job)
            continue
        older = [each for each in running - parked if lane(each) == lane(job) and came.index(each) < came.index(job)]
        assert not older
        if what == "park":
            order.park(job)
            parked.add(job)
            continue
        left[job] -= 1
        order.served(job, job.cost)
        if not left[job]:
            order.removed(job)
            running.discard(job)
            parked.clear()
            ended.append((lane(job), came.index(job)))
    assert not any(left.values())
    assert len(order) == 0
    if "park" not in does:
        for each in {lane for lane, _ in ended}:
            numbers = [number for lane, number in ended if lane == each]
            assert numbers == sorted(numbers)


def test_the_lanes_of_a_client_take_turns():
    order = Order(32)
    start(order, *[Job(lane=lane) for lane in "xxyz"])
    got = serve(order, 30)
    assert sorted(got.values()) == [10, 10, 10]


def test_a_choice_looks_at_few_clients_however_many_there_are():
    class Counted(Job):
        looks = 0

        @property
        def client(self):
            Counted.looks += 1
            return self.__dict__["client"]

        @client.setter
        def client(self, value):
            self.__dict__["client"] = value

    def cost(count):
        order = Order(32)
        start(order, *[Counted(str(i)) for i in range(count)])
        Counted.looks = 0
        serve(order, 2000)
        return Counted.looks

    assert cost(200) <= 1.1 * cost(2)
