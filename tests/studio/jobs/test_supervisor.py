"""The supervisor: it starts another worker when one dies, gives up in the end, and takes its worker with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

RUN = """
import os, signal, sys
from pathlib import Path
from studio.errors import StudioError
from studio.jobs.supervisor import supervise
tries = Path(sys.argv[1])

def main(supervisor):
    with tries.open("a") as file:
        file.write(f"{os.getpid()} {supervisor.crash}\\n")
    {body}
    return 7

try:
    print(supervise(main))
except StudioError as error:
    print(error.message)
"""


def start(tmp_path, body):
    script = RUN.replace("{body}", body)
    return subprocess.Popen([sys.executable, "-c", script, tmp_path / "tries"], stdout=subprocess.PIPE, text=True)


def tries(tmp_path):
    return [line.partition(" ")[2] for line in (tmp_path / "tries").read_text().splitlines()]


def test_the_exit_code_is_that_of_the_worker(tmp_path):
    assert start(tmp_path, "pass").communicate(timeout=60)[0] == "7\n"
    assert tries(tmp_path) == [""]


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("os._exit(0)", "it ended itself with the exit code 0"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "it died of the signal SIGABRT"),
    ],
)
def test_a_worker_that_dies_again_and_again_is_given_up(tmp_path, body, how):
    said = start(tmp_path, body).communicate(timeout=60)[0]
    assert said == f"the process that runs the jobs died 10 times in a row: {how}\n"
    assert tries(tmp_path) == ["", *[how] * 9]


def test_jobs_that_end_in_between_are_progress(tmp_path):
    body = "supervisor.ended()\n    if len(tries.read_text().splitlines()) < 25: os._exit(1)"
    assert start(tmp_path, body).communicate(timeout=60)[0] == "7\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel kills the worker on Linux only")
def test_a_killed_supervisor_takes_its_worker_with_it(tmp_path):
    with start(tmp_path, "sys.stdout.write('here'); sys.stdout.flush(); signal.pause()") as running:
        assert running.stdout.read(4) == "here"
        (worker,) = psutil.Process(running.pid).children()
        os.kill(running.pid, signal.SIGKILL)
        worker.wait(60)


def test_signals_are_passed_on(tmp_path):
    body = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); sys.stdout.write('here'); sys.stdout.flush(); "
        "signal.sigwait([signal.SIGTERM])"
    )
    with start(tmp_path, body) as running:
        assert running.stdout.read(4) == "here"
        running.terminate()
        assert running.communicate(timeout=60)[0] == "7\n"
