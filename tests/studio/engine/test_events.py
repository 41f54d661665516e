"""Events go to JSON and back; what comes from outside is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.engine import events
from studio.engine.events import Event, Failed, Finished, Preview, Started
from studio.errors import InputError, MediaError, StudioError, UnknownName, UsageError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
counts = st.integers(0, 1 << 40)
seconds = st.floats(0, 1e9)
pictures = st.binary(min_size=12, max_size=12).map(
    lambda data: studio.Image.from_array(np.frombuffer(data, np.uint8).reshape(2, 2, 3))
)
media = st.one_of(texts.map(studio.Text), pictures)
errors = st.one_of(
    st.builds(StudioError, texts, hint=st.none() | texts),
    st.builds(InputError, texts, texts, hint=st.none() | texts),
    st.builds(UnknownName, texts, texts, st.lists(texts, max_size=3)),
    st.builds(studio.errors.TimedOut, texts, texts),
    st.builds(studio.errors.WorkflowError, st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=3)),
)
made = st.one_of(
    st.builds(events.Queued, counts),
    st.builds(events.Loading, texts, texts),
    st.builds(Started, counts),
    st.builds(events.Notice, texts),
    st.builds(events.Progress, counts, counts, seconds, seconds),
    st.builds(events.Delta, counts, texts),
    st.builds(Preview, counts, media),
    st.builds(Finished, media),
    st.just(events.CancelledEvent()),
)


@given(event=made, number=counts)
def test_events_go_to_json_and_back(event, number):
    text = event.numbered(number).to_json()
    assert "\n" not in text
    read = Event.from_json(text)
    assert (type(read), read, read.number) == (type(event), event, number)
    assert Event.from_json(text.encode()).to_json() == text


@given(errors)
def test_errors_go_to_json_and_back(error):
    text = Failed(error).to_json()
    read = Event.from_json(text)
    assert isinstance(read, Failed)
    assert (type(read.error), str(read.error)) == (type(error), str(error))
    assert {name: getattr(read.error, name) for name in error.details} == {
        name: getattr(error, name) for name in error.details
    }
    assert read.to_json() == text


def test_an_error_without_a_json_form_is_told_as_the_nearest_that_has_one(tmp_path):
    class Own(InputError):
        """An error of a plugin."""

    full = studio.errors.NotStored(studio.Text("x"), studio.errors.StoreError("full"))
    assert type(Event.from_json(Failed(full).to_json()).error) is studio.errors.StoreError
    assert type(Event.from_json(Failed(Own("f", "m")).to_json()).error) is InputError
    lost = Event.from_json(Failed(studio.errors.CheckpointError(tmp_path / "a.st", "damaged")).to_json()).error
    assert lost.path == tmp_path / "a.st"
    assert Event.from_json(Failed(studio.errors.TimedOut("g", "m")).to_json()).error.over()


def test_stored_media_stand_by_their_hash(tmp_path):
    picture = studio.Image.from_array(np.full((4, 4, 3), 7, np.uint8))
    event = Finished(picture.attach(None, picture.save(tmp_path / "a.png")))
    assert json.loads(event.to_json())["media"] == {"sha256": picture.sha256, "media_type": "image/png"}
    with pytest.raises(InputError, match="are given only by their hash"):
        Event.from_json(event.to_json())
    assert Event.from_json(event.to_json(), lambda ref: {picture.sha256: picture}[ref.sha256]) == event


def test_a_large_preview_is_made_smaller_and_other_large_media_are_left_out():
    noise = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), dtype=np.uint8)
    text = Preview(1, studio.Image.from_array(noise)).to_json()
    assert len(text) < 1.4 * events.MAX_INLINE_BYTES
    assert Event.from_json(text).media.size == (500, 450)
    text = Finished(studio.Text("x" * (events.MAX_INLINE_BYTES + 1))).to_json()
    assert "data" not in json.loads(text)["media"]


def test_a_notice_with_half_a_character_can_be_sent():
    assert Event.from_json(events.Notice("a\ud800").to_json().encode()).text == "a?"


REF = {"sha256": "a" * 64, "media_type": "text/plain"}


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ("", UsageError, "not a JSON object"),
        ("[1]", UsageError, "not a JSON object"),
        ("[" * 100_000, UsageError, "not a JSON object"),
        (b"\xff", UsageError, "not a JSON object"),
        (" " * (9 << 20), UsageError, "at most 8,388,608 are read"),
        ({"steps": 1}, UnknownName, "no type of event is called ``"),
        ({"type": "begun", "steps": 1}, UnknownName, "no type of event is called `begun`"),
        ({"type": "started"}, InputError, "`steps` is missing from the event `started`"),
        ({"type": "started", "steps": "many"}, InputError, "`steps` is 'many'"),
        ({"type": "started", "steps": 1, "number": -1}, InputError, "`number` is '-1'"),
        ({"type": "started", "steps": 1, "number": "1"}, InputError, "`number` is '1'"),
        ({"type": "started", "steps": 1, "of": 2}, UnknownName, "`started` is called `of`"),
        ({"type": "finished", "media": "/etc/passwd"}, InputError, "must have `sha256` and `media_type`"),
        ({"type": "finished", "media": {**REF, "path": "/etc/passwd"}}, InputError, "must have `sha256`"),
        ({"type": "finished", "media": {**REF, "data": "%"}}, InputError, "not base64"),
        ({"type": "finished", "media": {**REF, "data": 7}}, InputError, "not base64"),
        ({"type": "finished", "media": {**REF, "data": "eA=="}}, MediaError, "but the event says aaaa"),
        ({"type": "finished", "media": {**REF, "media_type": "image/png", "data": "eA=="}}, MediaError, "damaged"),
        ({"type": "finished", "media": {**REF, "media_type": "x/y", "data": "eA=="}}, UnknownName, "`x/y`"),
        ({"type": "failed", "error": {"type": "OSError", "message": "m"}}, InputError, "`error` is"),
        ({"type": "failed", "error": {"type": "InputError", "message": 7}}, InputError, "`error` is"),
        ({"type": "failed", "error": "x" * 999}, InputError, "`error` is"),
    ],
)  # fmt: skip
def test_what_is_not_an_event_is_refused(told, kind, words):
    with pytest.raises(kind) as caught:
        Event.from_json(told if isinstance(told, str | bytes) else json.dumps(told))
    assert words in caught.value.message
    assert len(str(caught.value)) < 400


keys = st.sampled_from(["type", "media", "error", "number", "steps", "text", "sha256", "data", "message", "a"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.dictionaries(keys, inner) | st.lists(inner, max_size=2),
    max_leaves=8,
)


@given(json_values, st.sampled_from([kind.type for kind in events._KINDS]))
def test_any_json_is_read_or_refused(values, kind):
    told = {**values, "type": kind} if isinstance(values, dict) else values
    try:
        event = Event.from_json(json.dumps(told))
    except StudioError:
        return
    assert Event.from_json(event.to_json()) == event or isinstance(event, Failed)
