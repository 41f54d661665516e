"""Ctrl-C: within a step, exit 130, and nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import files

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("pause", ["0.5", "600"], ids=["between steps", "in a step that does not end"])
def test_ctrl_c_ends_it_with_130_and_leaves_nothing(start: Start, own_home: Path, tmp_path: Path, pause: str) -> None:
    marker = tmp_path / "begun"
    words = ["generate", "slow", "--steps", "1000", "--pause", pause, "-n", "2", "-o", "out/", "--marker", str(marker)]
    process = start(*words)
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=500)  # 2,000 steps of 0.5 s would take longer
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert files(tmp_path / "outside") == []
    assert set(files(own_home)) <= {"measured.json"}, "how long steps take is worth knowing all the same"


def test_without_ctrl_c_only_what_was_asked_for_is_there(start: Start, tmp_path: Path) -> None:
    process = start("generate", "echo", "hi", "-o", "hi.txt")
    out, err = process.communicate(timeout=500)
    assert (process.returncode, out) == (0, "hi.txt\n"), err
    assert files(tmp_path / "outside") == ["hi.txt"]
