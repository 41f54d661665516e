"""The local executor: for whom each request is done, what decides a result, and errors as results."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue

import pytest

import studio
from studio.errors import UnknownName
from studio.spec import JobSpec
from studio.workflow.executor import JobResult
from studio.workflow.local_executor import LocalExecutor

from .conftest import Write

FLOW = """
inputs: {seed: {type: int}, client: {type: text}}
nodes:
  a: {use: template, inputs: {text: "${client} ${seed}"}}
outputs: {a: "${a}"}
"""


def test_requests_say_for_whom(write: Write, host: studio.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs may have the names of options."""
    seen = []
    router = host.router
    accept = router.submit_many
    monkeypatch.setattr(router, "submit_many", lambda requests: seen.extend(requests) or accept(requests))
    options = {"client": "ann", "priority": "background", "time_limit_s": 9.5}
    flow = write(FLOW)
    made = host.run(flow, {"seed": 7, "client": "it"}, seed=3, **options)
    assert made["a"].text == "it 7"
    (spec,) = [request.spec for request in seen]
    assert {name: getattr(spec, name) for name in options} == options
    with pytest.raises(UnknownName, match="no priority is called `now`"):
        raise host.run(flow, {"seed": 8, "client": "it"}, priority="now").failed[0].error


@pytest.fixture
def executor(host: studio.Studio) -> LocalExecutor:
    return LocalExecutor(host.requests, host.store, lambda: host.router, {"device": "cpu"}, {})


def test_what_decides_a_result(executor: LocalExecutor, host: studio.Studio, tmp_path: Path) -> None:
    def identity(**inputs: object) -> dict[str, object]:
        return executor.identity(JobSpec(generator="shout", inputs=inputs, seed=0))

    assert identity(text="a") == identity(text="b"), "inputs and seed are told apart elsewhere"
    found = identity(text="a")
    assert (found["generator"], found["weights"], found["settings"]) == ("shout", {}, {}), "nothing depends on a device"
    assert str(found["plugin"]["version"]).startswith("sha256:")
    other = LocalExecutor(host.requests, host.store, lambda: host.router, {"device": "gpu:0"}, {})
    image = JobSpec(generator="image", inputs={"prompt": "a"}, seed=0)
    assert executor.identity(image)["weights"]
    assert executor.identity(image) != other.identity(image)
    with pytest.raises(UnknownName, match="no generator is called `whisper`"):
        executor.identity(JobSpec(generator="whisper", inputs={}, seed=0))


def test_each_job_ends_with_one_result(executor: LocalExecutor, host: studio.Studio) -> None:
    updates: SimpleQueue[tuple[str, object]] = SimpleQueue()
    given = {"good": {"text": "hi"}, "bad": {"text": "bad"}, "wrong": {"text": "hi", "times": 99}}
    executor.submit(
        [
            (JobSpec(generator="shout", inputs=inputs, seed=0), lambda update, name=name: updates.put((name, update)))
            for name, inputs in given.items()
        ]
    )
    results: dict[str, JobResult] = {}
    while len(results) < 3:
        name, update = updates.get()
        assert name not in results, "the result is the last update"
        if isinstance(update, JobResult):
            results[name] = update
    good, bad, wrong = (results[name] for name in given)
    assert good.made == studio.Text("HI").ref
    assert "no shouting" in str(bad.error)
    assert "`times` is 99" in str(wrong.error)
