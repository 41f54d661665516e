"""Whose turn it is: classes, shares, no hoarded credit, no starvation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from studio.engine.scheduling.fair_queue import BACKGROUND_SHARE, FairQueue, Work


@dataclass(eq=False)
class Job:
    client: str = ""
    background: bool = False
    cost: float = 1.0
    lane: str = ""


def start(queue, *jobs):
    for job in jobs:
        queue.accept(job)
    for _ in jobs:
        work, job = queue.next()
        assert work is Work.ADMIT
        queue.admitted(job)


def serve(queue, seconds):
    """Let the order choose steps for so many seconds; who got how many."""
    got = Counter()
    while sum(got.values()) < seconds:
        work, job = queue.next()
        assert work is Work.STEP
        queue.charge(job, job.cost)
        got[job] += job.cost
    return got


def test_clients_share_by_seconds_not_by_requests():
    queue = FairQueue(32)
    one, many, slow = Job("one"), [Job("many") for _ in range(5)], Job("slow", cost=7.0)
    start(queue, one, *many, slow)
    got = serve(queue, 630)
    assert abs(got[one] - 210) <= 8
    assert abs(got[slow] - 210) <= 8
    assert got[many[0]] == sum(got[job] for job in many), "a client's own are finished in the order they came"


def test_background_gives_way_but_keeps_a_share():
    queue = FairQueue(32)
    start(queue, back := Job("a", background=True))
    start(queue, front := Job("a"))
    got = serve(queue, 1600)
    assert abs(got[back] / 1600 - BACKGROUND_SHARE) < 0.005
    queue.removed(front)
    assert serve(queue, 10)[back] == 10, "alone it has all"


def test_a_newcomer_is_next_and_earns_no_credit_by_idling():
    queue = FairQueue(32)
    start(queue, old := Job("old"))
    serve(queue, 100)
    queue.accept(new := Job("new"))
    assert queue.next() == (Work.ADMIT, new), "within one step"
    queue.admitted(new)
    got = serve(queue, 20)
    assert abs(got[old] - got[new]) <= 1


def test_an_interactive_request_comes_before_any_background_work():
    queue = FairQueue(32)
    start(queue, *[Job("b", background=True) for _ in range(3)])
    serve(queue, 50)
    for _ in range(3):
        queue.accept(Job("b", background=True))
    queue.accept(new := Job("i"))
    assert queue.next() == (Work.ADMIT, new)
    queue.admitted(new)
    for _ in range(10):
        assert queue.next()[1] is new
        queue.charge(new, 1.0)


def test_a_debt_is_not_forgotten_by_leaving():
    queue = FairQueue(32)
    start(queue, quick := Job("q"), greedy := Job("g", cost=100.0))
    queue.charge(greedy, 100.0)
    queue.removed(greedy)
    start_again = Job("g")
    queue.accept(start_again)
    for _ in range(90):
        assert queue.next()[1] is quick
        queue.charge(quick, 1.0)


def test_what_finds_no_room_stands_aside_until_something_is_released():
    queue = FairQueue(32)
    start(queue, one := Job(), other := Job())
    queue.accept(waiting := Job("w"))
    queue.block(waiting)
    queue.park(one)
    assert serve(queue, 3)[other] == 3
    assert queue.parked == [one]
    queue.removed(other)
    assert {queue.next()[1]} <= {one, waiting}
    assert not queue.parked
    assert set(queue.jobs()) == {one, waiting}


def test_a_client_has_only_so_many_on_the_way():
    queue = FairQueue(2)
    first = [Job("a") for _ in range(4)]
    start(queue, *first[:2])
    for job in first[2:]:
        queue.accept(job)
    assert queue.next()[0] is Work.STEP
    queue.accept(other := Job("b"))
    assert queue.next() == (Work.ADMIT, other)
    queue.removed(other)
    queue.removed(first[0])
    assert queue.next() == (Work.ADMIT, first[2])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("aaabc"), st.booleans(), st.floats(0.1, 5)), min_size=1, max_size=12))
def test_nobody_starves(given_jobs):
    queue = FairQueue(3)
    left = {Job(client, background, cost): 3 for client, background, cost in given_jobs}
    for job in left:
        queue.accept(job)
    for _ in range(len(left) * 4 + 1):
        due = queue.next()
        if due is None:
            break
        work, job = due
        if work is Work.ADMIT:
            queue.admitted(job)
            continue
        left[job] -= 1
        queue.charge(job, job.cost)
        if not left[job]:
            queue.removed(job)
    assert not any(left.values())
    assert len(queue) == 0


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
    queue, left, ended = FairQueue(most), {}, []
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
            queue.accept(job)
            continue
        due = queue.next(enough)
        if due is None:
            queue.released()
            parked.clear()
            continue
        work, job = due
        if work is Work.ADMIT:
            if what == "block":
                queue.block(job)
                continue
            assert sum(lane(each) == lane(job) for each in running - parked) < wanted
            queue.admitted(job)
            running.add(job)
            continue
        older = [each for each in running - parked if lane(each) == lane(job) and came.index(each) < came.index(job)]
        assert not older
        if what == "park":
            queue.park(job)
            parked.add(job)
            continue
        left[job] -= 1
        queue.charge(job, job.cost)
        if not left[job]:
            queue.removed(job)
            running.discard(job)
            parked.clear()
            ended.append((lane(job), came.index(job)))
    assert not any(left.values())
    assert len(queue) == 0
    if "park" not in does:
        for each in {lane for lane, _ in ended}:
            numbers = [number for lane, number in ended if lane == each]
            assert numbers == sorted(numbers)


def test_the_lanes_of_a_client_take_turns():
    queue = FairQueue(32)
    start(queue, *[Job(lane=lane) for lane in "xxyz"])
    got = serve(queue, 30)
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
        queue = FairQueue(32)
        start(queue, *[Counted(str(i)) for i in range(count)])
        Counted.looks = 0
        serve(queue, 2000)
        return Counted.looks

    assert cost(200) <= 1.1 * cost(2)


def test_a_lane_has_its_running_jobs_without_those_that_are_parked_or_done():
    queue = FairQueue(32)
    first, second, parked, done = (Job("ann") for _ in range(4))
    start(queue, first, second, parked, done, Job("ann", lane="other"), Job("bob"))
    queue.accept(Job("ann"))
    queue.park(parked)
    queue.charge(done, 1.0, done=True)
    assert queue.lane(first) == queue.lane(second) == [first, second]
