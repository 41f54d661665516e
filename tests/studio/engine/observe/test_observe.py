"""What others see of an engine: the trace, the metrics, and the status that `studio top` shows."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.engine.checkpoints.run_folder import RunFolder, alive, folders
from studio.engine.observe.metrics import Metrics
from studio.engine.observe.status import Status, read
from studio.engine.observe.trace import Trace
from studio.errors import StoreError
from studio.home import default_home
from tests import forkserver

TOY = Path(__file__).parents[1] / "toy_plugin.py"
SAMPLE = re.compile(r'[a-z_]+(\{([a-z]+="([^"\\\n]|\\[\\"n])*",?)*\})? (-?[0-9.e+-]+|\+Inf)')


def run(*arguments):
    return forkserver.run(["-m", "studio", "--plugin", str(TOY), "--device", "cpu", *arguments])


def spans(events, name):
    return [each for each in events if each["ph"] == "X" and each["name"] == name]


def test_a_trace_holds_every_piece_of_work(tmp_path, sample_plugin):
    path = tmp_path / "trace.json"
    with studio.Studio(plugins=[sample_plugin], device="cpu", trace=path) as host:
        tickets = host.submit_many("counter", 2, seed=1, count=6, preview_every=3)
        for ticket in tickets:
            ticket.result()
    events = json.loads(path.read_text())
    assert all({"name", "ph", "pid"} <= set(event) for event in events)
    assert len(spans(events, "start")) == len(spans(events, "finish")) == 2
    assert len(spans(events, "preview")) == 2
    steps = spans(events, "step")
    assert sum(each["args"]["width"] for each in steps) == 12
    assert sorted(p for each in steps for p in each["args"]["positions"]) == sorted([1, 2, 3, 4, 5, 6] * 2)
    assert {each["args"]["generator"] for each in steps} == {"counter"}
    begun = [each["id"] for each in events if each["ph"] == "b"]
    assert begun == sorted(each["id"] for each in events if each["ph"] == "e")
    ordered = [each["ts"] for each in steps]
    assert ordered == sorted(ordered)
    assert all(a["ts"] + a["dur"] <= b["ts"] + 0.2 for a, b in pairwise(steps)), "one at a time"


def test_a_trace_of_a_killed_process_lacks_the_bracket_alone(tmp_path):
    path = tmp_path / "trace.json"
    options = ["--plugin", str(TOY), "--trace", str(path), "generate", "chain", "--steps", "100000"]
    process = forkserver.start(["-m", "studio", *options], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (path.exists() and path.read_text().count('"step"') > 20):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    events = json.loads(path.read_text() + "]")
    assert len(spans(events, "step")) > 20


def test_the_trace_option_and_a_bad_path(tmp_path):
    path = tmp_path / "trace.json"
    assert run("--trace", str(path), "generate", "chain", "--steps", "3").returncode == 0
    assert len(spans(json.loads(path.read_text()), "step")) == 3
    bad = run("--trace", str(tmp_path / "no" / "t.json"), "generate", "chain")
    assert (bad.returncode, bad.stderr.partition("\n")[0]) == (
        1, f"error: cannot write `{tmp_path / 'no' / 't.json'}`: No such file or directory",
    )  # fmt: skip
    with pytest.raises(StoreError):
        Trace(tmp_path)


def test_metrics_count_what_was_done(sample_plugin):
    with studio.Studio(plugins=[sample_plugin], device="cpu") as host:
        assert "studio_requests_unfinished 0\n" in host.metrics()
        for seed in range(3):
            host.generate("counter", seed=seed, count=4)
        text = host.metrics()
    assert 'studio_requests_total{generator="counter"} 3\n' in text
    assert 'studio_requests_ended_total{generator="counter",outcome="finished"} 3\n' in text
    assert 'studio_request_steps_total{generator="counter"} 12\n' in text
    assert 'studio_step_seconds_count{generator="counter"} 12\n' in text
    assert 'studio_step_seconds_bucket{generator="counter",le="+Inf"} 12\n' in text


@settings(max_examples=25)
@given(
    names=st.lists(st.text(max_size=5), min_size=1, max_size=3),
    times=st.lists(st.floats(0, 100), max_size=20),
    outcome=st.sampled_from(["finished", "failed", "cancelled"]),
)
def test_metrics_are_well_formed_whatever_the_names(names, times, outcome):
    metrics = Metrics()
    for number, name in enumerate(names):
        metrics.accepted(number, name, "", False, 0.0)
        for seconds in times:
            metrics.stepped((number,), (1,), name, 0.0, seconds)
        metrics.ended(number, name, outcome, 1.0)
    lines = metrics.text().split("\n")
    assert lines.pop() == ""
    described: set[str] = set()
    for line in lines:
        if line.startswith("# TYPE "):
            described.add(line.split()[2])
            assert line.split()[3] in ("counter", "gauge", "histogram"), "the types that Prometheus knows"
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert re.sub("_(bucket|sum|count)$", "", line.partition("{")[0].partition(" ")[0]) in described
    counts = [int(line.rpartition(" ")[2]) for line in lines if line.startswith("studio_step_seconds_bucket")]
    assert all(count <= len(times) * len(names) for count in counts)
    assert "studio_requests_unfinished 0" in lines


def test_top_sees_other_processes_and_forgets_the_dead():
    words = ["-m", "studio", "--plugin", str(TOY), "generate", "chain", "--steps", "100000", "-n", "2"]
    process = forkserver.start(words, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(each["request_steps_per_second"] for each in read(default_home())):
        time.sleep(0.05)
    (engine,) = json.loads(run("top", "--json").stdout)
    assert engine["pid"] == process.pid
    assert [each["device"] for each in engine["devices"]] == ["cpu"]
    assert [each["generator"] for each in engine["models"]] == ["chain"]
    assert [(each["generator"], each["steps"]) for each in engine["requests"]] == [("chain", 100000)] * 2
    assert engine["request_steps_per_second"] > 0
    rows = [line.split("\t") for line in run("top").stdout.splitlines()]
    assert [row[2:4] for row in rows] == [["chain", "interactive"]] * 2
    process.kill()
    process.wait()
    assert json.loads(run("top", "--json").stdout) == []
    assert run("resume", "--list").returncode == 0
    assert len(folders(default_home())) <= 1, "what holds no checkpoint is removed"


def test_a_status_is_small_however_many_wait(tmp_path):
    folder = RunFolder(tmp_path)
    watched = Status(folder, "cpu")
    for number in range(5000):
        watched.accepted(number, "chain", "", False, 0.0)
    told = watched.as_json(0.0)
    assert told["unfinished"] == 5000
    assert len(json.dumps(told)) < 20_000
    watched.close()
    folder.close()
    assert read(tmp_path) == []


def test_a_folder_is_its_owners_until_it_lets_go(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write("status.json", b"not json", durable=False)
    path = folder.path()
    assert alive(path)
    assert read(tmp_path) == []
    folder.close()
    assert not path.exists()
    assert not alive(path)


def test_the_drawing_of_top(sample_plugin):
    from rich.console import Console

    from studio.cli.commands.top import _drawn

    engine = {
        "pid": 7, "devices": [{"device": "cpu", "used": 1 << 20, "budget": 1 << 30}], "unfinished": 1,
        "models": [{"generator": "image", "place": "cpu", "bytes": 2048}], "request_steps_per_second": 3.5,
        "requests": [{"request": 1, "generator": "image", "client": "", "background": True, "position": 2, "steps": 9,
                      "eta_s": 4.0}],
    }  # fmt: skip
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(_drawn([engine]))
    console.print(_drawn([]))
    text = console.export_text()
    for words in ("1.0 MiB of 1.0 GiB", "image 2.0 KiB", "3.5", "background", "2 of 9", "4 s", "nothing is running"):
        assert words in text
