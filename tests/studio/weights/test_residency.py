"""Which groups stay: never above the limit, and as few are read again as a cycle of calls allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.weights.residency import Residency


@dataclass(eq=False)
class Group:
    component: str
    size: int = 1
    busy: bool = False


@dataclass
class Device:
    """Groups are read when they are called and do not stay."""

    limit: int
    dropped: list[Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.residency: Residency[Group] = Residency(self.dropped.append)
        self.residency.fit(self.limit)

    def call(self, groups: Iterable[Group]) -> int:
        """Call groups, one after another. Returns how many were read."""
        reads = 0
        for group in groups:
            self.residency.call(group)
            reads += group not in self.residency
            self.residency.admit(group)
            assert self.residency.held <= self.limit
        return reads


def component(name: str, count: int, size: int = 1) -> list[Group]:
    return [Group(name, size) for _ in range(count)]


@pytest.mark.parametrize("room", range(11))
def test_of_a_cycle_as_many_groups_stay_as_fit(room: int) -> None:
    device, layers = Device(room), component("denoiser", 10)
    assert device.call(layers) == 10
    for _ in range(5):
        assert device.call(layers) == 10 - room
    assert not device.dropped


def test_encoders_leave_for_the_denoiser_and_a_decoder_that_runs_once_does_not_drive_it_out() -> None:
    device = Device(8)
    encoder, denoiser, decoder = component("encoder", 4), component("denoiser", 8), component("decoder", 4)
    device.call(encoder)
    assert device.call(denoiser) == 8
    assert device.call(denoiser) == 0
    assert device.dropped == encoder[::-1]
    assert device.call(decoder) == 4
    assert device.call(encoder) == 4, "of the next request"
    assert device.call(denoiser) == 0


def test_two_denoisers_by_turns_do_not_drive_each_other_out() -> None:
    device, high, low = Device(8), component("high", 6), component("low", 6)
    for _ in range(2):
        device.call([*high, *low])
    for _ in range(4):
        assert device.call([*high, *low]) == 4
    for _ in range(3):
        device.call(low)
    assert device.call(low) == 0, "the other is no longer called"


def test_a_decoder_that_runs_many_tiles_takes_the_memory_of_a_denoiser_that_waits() -> None:
    device, denoiser, decoder = Device(8), component("denoiser", 8), component("decoder", 3)
    for _ in range(3):
        device.call(denoiser)
    reads = [device.call(decoder) for _ in range(10)]
    assert reads[0] == 3
    assert reads[-1] == 0


STEPS = st.one_of(
    st.tuples(st.just("call"), st.integers(0, 11)),
    st.tuples(st.just("fit"), st.integers(0, 40)),
    st.tuples(st.just("free"), st.integers(0, 40)),
    st.tuples(st.just("forget"), st.sampled_from("abc")),
    st.tuples(st.just("busy"), st.integers(0, 11)),
)


@given(sizes=st.lists(st.integers(1, 9), min_size=12, max_size=12), steps=st.lists(STEPS, max_size=60))
def test_the_limit_holds_and_what_computes_stays_whatever_happens(
    sizes: list[int], steps: list[tuple[str, int | str]]
) -> None:
    groups = [Group("abc"[i % 3], size) for i, size in enumerate(sizes)]
    there: set[Group] = set()

    def drop(group: Group) -> None:
        assert not group.busy
        there.remove(group)  # it was there, once

    residency: Residency[Group] = Residency(drop)
    for what, value in steps:
        if what == "call":
            group = groups[int(value)]
            residency.call(group)
            held = residency.held
            if residency.admit(group):
                there.add(group)
            assert residency.held <= max(held, residency.limit)
        elif what == "fit":
            residency.fit(int(value))
        elif what == "free":
            held = residency.held
            residency.free(int(value))
            busy = sum(group.size for group in there if group.busy)
            assert residency.held <= max(busy, held - int(value))
        elif what == "busy":
            groups[int(value)].busy = groups[int(value)] in there and not groups[int(value)].busy
        elif not any(group.busy and group.component == value for group in there):
            residency.forget(value)
        assert residency.held == sum(group.size for group in there)
        assert all(group in residency for group in there)
        assert residency.held <= max(residency.limit, sum(group.size for group in there if group.busy))
