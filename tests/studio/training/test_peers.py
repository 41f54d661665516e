"""Two processes that share a run are one that sees the whole batch; Ctrl-C ends both at the same step."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import safetensors
import safetensors.torch
import torch

from studio.training.peers import Peers
from tests import forkserver

from . import first, shared


def torchrun(program: ModuleType, *arguments: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launch, str(program.__file__), *arguments]


def run_two(program: ModuleType, *arguments: str) -> None:
    """Two processes with the environment that torchrun gives them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        forkserver.start(
            [str(program.__file__), *arguments],
            env={**os.environ, **address, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]


def test_two_processes_are_one(tmp_path: Path) -> None:
    shared.train(tmp_path / "alone", 6)
    run_two(shared, str(tmp_path / "both"), "6")
    alone, both = (safetensors.torch.load_file(tmp_path / name / "run.safetensors") for name in ("alone", "both"))
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-6)
    with (tmp_path / "both" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(6)]  # one process writes


def test_what_the_first_prepares_is_there_for_the_others(tmp_path: Path) -> None:
    run_two(first, str(tmp_path / "said"))
    assert (tmp_path / "said").read_text().splitlines() == ["0 begins", "0 ends", "1 begins", "1 ends"]
    with Peers().first_alone():  # one that is alone waits for nobody
        pass


@pytest.mark.slow
def test_interrupt_ends_both_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    command = torchrun(shared, str(tmp_path / "run"), "100000", "0.02")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "5":
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait(500)
    with safetensors.safe_open(tmp_path / "run" / "run.safetensors", framework="pt") as file:
        assert '"step"' in file.metadata()["counters"]
