"""`studio jobs` from end to end."""

from __future__ import annotations

import json
import re

import pytest

from studio.jobs import Jobs

FLOW = """
inputs:
  name: {type: text}
nodes:
  both: {use: template, repeat: 2, inputs: {text: "${name} ${number}"}}
outputs: {both: "${both}"}
"""


def added(ran):
    assert ran.code == 0, ran.err
    assert all(re.fullmatch("[0-9a-f]{16}", line) for line in ran.lines)
    return ran.lines


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Run what is queued in this process: the command itself is a process of its own (see tests/studio/jobs)."""
    import studio as host_module

    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))

    def run():
        with host_module.Studio(device="cpu") as host, Jobs(host) as jobs:
            jobs.start()
            jobs.drain()

    return run


def test_jobs_are_added_run_shown_and_pruned(studio, work, tmp_path):
    one, two = added(studio("jobs", "add", "template", "hello", "-n", "2", "--seed", "5", "-o", "out/"))
    listed = [line.split("\t") for line in studio("jobs", "list").lines]
    assert [(row[0], row[1], row[2]) for row in listed] == [(two, "queued", "template"), (one, "queued", "template")]
    work()
    shown = json.loads(studio("jobs", "show", one, "--json").out)
    assert (shown["state"], shown["work"]["seed"]) == ("done", 5)
    assert shown["artifacts"][0]["path"].startswith(str(tmp_path / "work" / "out"))
    assert studio("jobs", "watch", one).lines[-1].startswith("done ")
    assert [json.loads(line)["state"] for line in studio("jobs", "watch", one, "--json").lines][-1] == "done"
    assert len(json.loads(studio("jobs", "list", "--state", "done", "--json").out)) == 2
    assert studio("jobs", "prune", "--keep", "1").err == "1 job removed\n"
    assert studio("jobs", "list").lines[0].split("\t")[0] in (one, two)


def test_a_key_makes_adding_repeatable(studio, work):
    first = added(studio("jobs", "add", "template", "hello", "-n", "2", "--idempotency-key", "k"))
    assert added(studio("jobs", "add", "template", "hello", "-n", "2", "--idempotency-key", "k")) == first
    refused = studio("jobs", "add", "template", "other", "-n", "2", "--idempotency-key", "k")
    assert refused.code == 2
    assert "conflict: the idempotency key `k/0` belongs to another job with other work" in refused.err


def test_a_workflow_is_a_job(studio, work, tmp_path):
    (tmp_path / "work" / "flow.yaml").write_text(FLOW)
    (id,) = added(studio("jobs", "add", "run", "flow.yaml", "-p", "name=Ann", "-o", "made", "--client", "ann"))
    work()
    assert sorted(path.read_text() for path in (tmp_path / "work" / "made").iterdir()) == ["Ann 1", "Ann 2"]
    assert "flow.yaml" in studio("jobs", "show", id).out


def test_jobs_are_paused_resumed_cancelled_moved_and_retried(studio, work):
    one, two, three = added(studio("jobs", "add", "template", "hello", "-n", "3"))
    assert studio("jobs", "pause", one, two).lines == [f"{one} paused", f"{two} paused"]
    assert studio("jobs", "resume", one).lines == [f"{one} queued"]
    assert studio("jobs", "cancel", two).lines == [f"{two} cancelled"]
    assert studio("jobs", "retry", two).lines == [f"{two} queued"]
    assert studio("jobs", "move", three, "--first").code == 0
    assert studio("jobs", "move", three, "--before", two).code == 0
    refused = studio("jobs", "resume", one)
    assert (refused.code, refused.err.splitlines()[0]) == (2, f"error: the job `{one}` is queued, not paused")
    work()
    assert {json.loads(studio("jobs", "show", id, "--json").out)["state"] for id in (one, two, three)} == {"done"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "nothing"], "no job is called `nothing`"),
        (["list", "--state", "runing"], "did you mean `running`?"),
        (["add", "nothing"], "no generator is called `nothing`"),
        (["add", "run", "nothing"], "no file or built-in workflow is called `nothing`"),
        (["add", "template"], "text"),
        (["move", "a"], "either to the front or before another job"),
    ],
)
def test_mistakes_are_named(studio, work, argv, said):
    ran = studio("jobs", *argv)
    assert ran.code == 2
    assert said in ran.err


def test_the_states_of_jobs_are_no_unfinished_requests(studio, work, tmp_path):
    saved = tmp_path / "home" / "running" / "some" / "job-0123.safetensors"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"")
    assert studio("resume", "--list").err == "note: no unfinished requests\n"
    assert saved.exists()
