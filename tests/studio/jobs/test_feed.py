"""The events in memory: bounded, in order, and nothing is missed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from studio.engine.events import Delta, Notice, Progress, Started
from studio.jobs.feed import Feed


def test_the_newest_progress_replaces_the_older():
    feed = Feed(100)
    feed.add(Started(9))
    for position in range(5000):
        feed.add(Progress(position, 5000, 1.0, 1.0))
    assert [(each.number, each.type) for each in feed.after(0)] == [(100, "started"), (5100, "progress")]
    assert feed.after(5100) == []


@given(st.lists(st.text(min_size=1, max_size=3), max_size=40), st.integers(0, 40))
def test_pieces_of_text_join_to_the_text(pieces, times):
    feed, start = Feed(0), 0
    for piece in pieces * (1 + times * 2):
        feed.add(Delta(start, piece))
        start += len(piece)
    found = feed.after(-1)
    assert "".join(each.data["text"] for each in found) == "".join(pieces) * (1 + times * 2)
    assert len(found) <= 1001
    at = 0
    for each in found:
        assert each.data["start"] == at
        at += len(each.data["text"])


def test_a_reserved_number_comes_before_later_ones():
    feed = Feed(0)
    number = feed.reserve()
    feed.add(Notice("later"))
    feed.add(Notice("kept"), number=number)
    assert [(each.number, each.data["text"]) for each in feed.after(-1)] == [(0, "kept"), (1, "later")]


def test_waiting_ends_when_the_feed_is_closed():
    feed = Feed(0)
    feed.close()
    feed.wait(0, 60)
    feed.wait_over(60)
    assert feed.over
