"""benchmarks/gpu.py runs to its last line without a GPU, so that the time on one is not spent on its mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ELSEWHERE = ("def lose(", "class Illegal(")  # run by the process that is to fail


def missed(cover: Path) -> list[str]:
    """Lines that did not run, but for those that another process runs."""
    lines, found, block = cover.read_text("utf-8").splitlines(), [], ""
    for line in lines:
        code = line[7:]
        if code.strip() and not code.startswith((" ", ")")):
            block = code
        if line.startswith(">>>>>>") and not block.startswith(ELSEWHERE):
            found.append(code)
    return found


@pytest.mark.slow
def test_every_line_of_the_gpu_benchmark_runs_in_a_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [
        sys.executable, "-m", "trace", "--count", "--missing", "--coverdir", str(tmp_path),
        "--ignore-dir", f"{sys.prefix}:{sys.base_prefix}:{Path(pytest.__file__).parents[1]}",
        str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--rehearse", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    lines = {line.pop("part"): line for line in map(json.loads, out.read_text().splitlines())}
    assert lines.pop("breaks")["error"] == "RuntimeError: as it should"
    assert lines.pop("overruns")["error"] == "not done after 0.2 s"
    assert len(lines) == 13
    assert [f"{name}: {line['error']}" for name, line in lines.items() if "error" in line] == []
    assert lines["attention"]["wrong"] == []
    assert lines["offload"]["same_bytes"]
    assert lines["loading"]["same_bytes"]
    assert "IndexError" in lines["failures"]["said"]
    assert [missed(tmp_path / f"{name}.cover") for name in ("gpu", "gpu_parts")] == [[], []]
