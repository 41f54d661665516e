"""How wide a batch is made, from measured step times; and what was learned, on disk."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.engine.cost.profile import Group, Profile, shape_of
from studio.engine.scheduling.batching import REMEASURE_EVERY, choose_width

GROUP = Group("g", "1", "(4, 16, 16)", "cpu", "float32", 2)


def settle(seconds, most, goal=1.0, steps=200):
    """The width that is chosen most, in the second half, by a machine on which a step takes `seconds(width)`."""
    profile = Profile()
    chosen = []
    for _ in range(steps):
        width = choose_width(profile.seconds(GROUP), profile.reliable(GROUP), most, goal, profile.count(GROUP))
        profile.record(GROUP, width, seconds(width), None)
        chosen.append(width)
    late = chosen[steps // 2 :]
    return max(set(late), key=late.count), chosen


def test_it_widens_by_doubling_at_once_and_stays_where_that_pays():
    width, chosen = settle(lambda width: 0.03 + 0.01 * width, 8)
    assert chosen[:4] == [1, 2, 4, 8]
    assert width == 8


def test_it_does_not_widen_beyond_saturation():
    width, chosen = settle(lambda width: 0.01 * max(2, width), 16)
    assert width == 2
    assert chosen.count(16) <= 4


def test_a_shared_step_stays_within_the_latency_goal():
    width, chosen = settle(lambda width: 0.3 + 0.1 * width, 32, goal=1.0)
    assert max(0.3 + 0.1 * width for width in chosen) <= 1.4, "once, as doubling had to find out"
    assert 0.3 + 0.1 * width <= 1.0


def test_alone_where_even_one_takes_longer_than_the_goal():
    assert settle(lambda width: 5.0 * width, 8)[0] == 1


def test_it_looks_again_when_the_machine_has_changed():
    profile = Profile()
    for turn in range(12 * REMEASURE_EVERY):
        width = choose_width(profile.seconds(GROUP), profile.reliable(GROUP), 8, 1.0, profile.count(GROUP))
        busy = turn < 2 * REMEASURE_EVERY
        profile.record(GROUP, width, 0.01 * width if busy else 0.03 + 0.001 * width, None)
    assert width > 1


def linear(width):
    """Seconds of a step that cost a start, and as much for each request as a step of the starter of texts."""
    return 0.005 + 0.001 * width


def test_two_batches_of_nearly_one_size_do_not_end_the_growth():
    known = {1: linear(1), 8: linear(8), 9: linear(9), 10: linear(10) * 1.05}
    assert choose_width(known, list(known), 32, 1.0, 20) == 20


@given(st.integers(2, 32))
def test_no_request_is_left_over_for_a_small_batch(most):
    known = {width: linear(width) for width in range(1, 33)}
    assert choose_width(known, list(known), most, 1.0, 20) == most


@given(
    st.dictionaries(st.integers(1, 64), st.floats(1e-4, 10), max_size=6),
    st.integers(1, 64),
    st.floats(0.01, 5),
    st.integers(0, 500),
)
def test_the_width_is_always_lawful(known, most, goal, turn):
    assert 1 <= choose_width(known, list(known)[::2], most, goal, turn) <= most


def test_the_lowest_peak_of_a_generator_follows_what_is_recorded():
    profile, other = Profile(), GROUP._replace(shape="(4, 8, 8)")
    lowest = []
    for group, peak in ((GROUP, 300), (other, 100), (other, 200), (GROUP, 150), (other, 900)):
        profile.record(group, 1, 0.1, peak)
        lowest.append(profile.min_peak("g", "1", "cpu", "float32"))
    assert lowest == [300, 100, 200, 200, 300]
    assert profile.min_peak("h", "1", "cpu", "float32") == 0


def test_what_was_learned_is_kept_for_equal_versions(tmp_path):
    path = tmp_path / "home" / "measured.json"
    profile = Profile(path, {"torch": "1"})
    for seconds in (9.0, 0.2, 0.1, 0.3):
        profile.record(GROUP, 4, seconds, 1000)
    assert profile.seconds(GROUP) == {4: 0.2}, "the first builds kernels and does not count"
    profile.save()
    again = Profile(path, {"torch": "1"})
    assert (again.seconds(GROUP), again.peak(GROUP, 4), again.peak(GROUP, 8)) == ({4: 0.2}, 1000, 2000)
    assert again.rows() == profile.rows()
    assert Profile(path, {"torch": "2"}).rows() == []


def test_two_processes_do_not_erase_each_other(tmp_path):
    path = tmp_path / "measured.json"
    one, other = Profile(path), Profile(path)
    one.record(GROUP, 1, 0.1, 5)
    other.record(GROUP, 2, 0.1, 5)
    one.save()
    other.save()
    assert [row.width for row in Profile(path).rows()] == [1, 2]


BROKEN = ["", "{", "[]", '{"versions": {}, "rows": [{"width": "x"}]}', '{"versions": {}}', "\0"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_damaged_file_costs_only_what_was_learned(tmp_path, text):
    path = tmp_path / "measured.json"
    path.write_text(text)
    profile = Profile(path)
    assert profile.rows() == []
    profile.record(GROUP, 1, 0.1, None)
    profile.save()
    assert len(json.loads(path.read_text())["rows"]) == 1


def test_a_home_that_cannot_be_written_is_no_fault(tmp_path):
    (tmp_path / "home").write_text("in the way")
    profile = Profile(tmp_path / "home" / "measured.json")
    profile.record(GROUP, 1, 0.1, None)
    profile.save()


def test_long_keys_are_shortened():
    assert shape_of((4, 16, 16)) == "(4, 16, 16)"
    assert len(shape_of(tuple(range(100)))) == 16
