"""Kill -9 of what runs the jobs, and jobs that end their own process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import studio
from studio.jobs import Jobs, JobState

from .conftest import PLUGIN

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "kills.py"


@pytest.fixture
def kills():
    spec = importlib.util.spec_from_file_location("kills", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def host(tmp_path):
    with studio.Studio(home=tmp_path / "home", device="cpu", plugins=[PLUGIN]) as host, Jobs(host) as jobs:
        yield jobs


def run(jobs, *more):
    """Run the command that runs the jobs, in its own processes."""
    command = [sys.executable, "-m", "studio", "--home", str(jobs.studio.home), "--plugin", str(PLUGIN), "jobs", "run"]
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)


def test_killed_jobs_are_done_with_equal_bytes(kills, monkeypatch):
    monkeypatch.setenv("STUDIO_JOBS_URL", "")
    found = kills.run(kills=3, longest=1.0, queued=4)
    assert found["wrong"] == []
    assert sum(found["kills"].values()) >= 1


@pytest.mark.slow
def test_sixty_kills(kills, monkeypatch):
    monkeypatch.setenv("STUDIO_JOBS_URL", "")
    found = kills.run(kills=60, seed=2)
    assert found["wrong"] == []
    assert sum(found["kills"].values()) > 40


def test_a_job_that_ends_its_process_is_quarantined_and_the_others_are_done(host):
    texts = ["before", "die", "after", "signal"]
    ids = {text: host.add(host.spec("note", text=text, seed=1)).id for text in texts}
    ran = run(host, "--json")
    assert ran.returncode == 1, ran.stderr
    told = {found["id"]: found["state"] for found in map(json.loads, ran.stdout.splitlines())}
    assert (told[ids["die"]], told[ids["signal"]]) == ("quarantined", "quarantined")
    assert {host.get(ids[text]).state for text in ("before", "after")} == {JobState.DONE}
    died = host.get(ids["die"])
    assert died.error.message == "its process died 3 times while it ran: it ended itself with the exit code 3"
    assert died.attempts == 3
    assert "SIGSEGV" in host.get(ids["signal"]).error.message
    assert host.retry(ids["die"]).crashes == 0


def test_a_kill_from_outside_makes_no_job_suspect(host):
    job = host.add(host.spec("gate", count=1, seed=1))
    command = [sys.executable, "-m", "studio", "--home", str(host.studio.home), "--plugin", str(PLUGIN), "jobs", "run"]
    for count in range(1, 4):
        worker = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while host.get(job.id).state is not JobState.RUNNING or host.get(job.id).attempts < count:
            assert worker.poll() is None, worker.stdout.read()
        os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()  # until the worker itself has gone too
    assert host.get(job.id).attempts == 3
    host.start()
    host.studio.generator("gate").permits.release(1)
    done = host.wait(job.id, 60)
    assert (done.state, done.crashes) == (JobState.DONE, 0)


def test_ctrl_c_saves_what_runs(host):
    job = host.add(host.spec("gate", count=2, seed=1))
    command = [sys.executable, "-m", "studio", "--home", str(host.studio.home), "--plugin", str(PLUGIN), "jobs", "run"]
    worker = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while host.get(job.id).state is not JobState.RUNNING:
        assert worker.poll() is None
    os.killpg(worker.pid, signal.SIGINT)
    said = worker.communicate(timeout=60)[0].decode()
    assert worker.returncode == 130, said
    assert "Traceback" not in said
    assert host.get(job.id).state in (JobState.QUEUED, JobState.RUNNING)
    host.start()
    host.studio.generator("gate").permits.release(2)
    assert host.wait(job.id, 60).state is JobState.DONE
