"""Jobs and works as JSON, from trusted and untrusted hands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.errors import InputError, StudioError, UnknownName, UsageError
from studio.jobs import Job, JobArtifact, JobError, JobEvent, JobPosition, JobState, WorkflowWork, parse_work
from studio.jobs.job import digest

words = st.text(max_size=20)
plain = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | words, lambda inner: st.lists(inner, max_size=3))
common = {"inputs": st.dictionaries(words, plain), "seed": st.integers(0, 99)}
works = st.one_of(
    st.builds(studio.JobSpec, generator=words, **common), st.builds(WorkflowWork, document=words, file=words, **common)
)
moments = st.floats(0, 1e10)
jobs = st.builds(
    Job, id=words, work=works, state=st.sampled_from(JobState), client=words, order=moments, attempts=st.integers(0, 9),
    key=st.none() | words, created=moments, ended=st.none() | moments,
    progress=st.none() | st.builds(JobPosition, position=st.integers(0, 9), eta_s=st.none() | moments),
    error=st.none() | st.builds(JobError, title=words, message=words, hint=st.none() | words),
    artifacts=st.tuples(st.builds(JobArtifact, sha256=words, media_type=words, name=words)),
    values=st.dictionaries(words, plain),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(jobs)
def test_a_job_is_the_same_after_json(job):
    assert Job.from_json(job.to_json()) == job


@given(works)
def test_work_is_the_same_after_json(work):
    again = parse_work(work.to_json())
    assert again == work
    assert digest(again) == digest(work)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_rubbish_is_refused_in_one_line(data):
    with pytest.raises(StudioError) as refused:
        parse_work(data)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ('{"document": "a", "sed": 1}', UnknownName, "no field of a workflow job is called `sed`"),
        ('{"document": 1}', InputError, "document"),
        ('{"generator": "image"}', InputError, "`seed` is missing"),
        ("[1]", UsageError, "not a JSON object"),
        ('{"document": "a", "seed": -1}', InputError, "seed"),
    ],
)
def test_invalid_work_says_what_is_wrong(text, kind, words):
    with pytest.raises(kind, match=words):
        parse_work(text)


def test_only_the_end_is_the_last_event():
    assert JobEvent(3, "state", {"state": "done"}).last
    assert not JobEvent(3, "state", {"state": "paused"}).last
    assert not JobEvent(3, "progress", {"position": 1}).last
