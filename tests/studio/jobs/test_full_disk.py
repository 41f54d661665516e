"""A full disk: what was accepted stays, the error is clear, and the jobs go on when there is space."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("full_disk.py")


def run(folder, points):
    ran = subprocess.run([sys.executable, SCRIPT, folder, str(points)], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def check(found, points):
    assert len(found) == points
    for index, each in enumerate(found):
        assert each["kept"] == each["accepted"]
        assert "jobs.sqlite" in each["said"] or each["accepted"] == 200, each
        if index % 4 == 0:
            assert each["done"] == each["accepted"] + 1
    assert sum(bool(each["said"]) for each in found) > points / 2


def test_nothing_accepted_is_lost(tmp_path):
    check(run(tmp_path, 3), 3)


@pytest.mark.slow
def test_nothing_accepted_is_lost_at_100_sizes(tmp_path):
    check(run(tmp_path, 100), 100)
