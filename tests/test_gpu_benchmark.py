"""benchmarks/gpu.py runs to its last line without a GPU, so that the time on one is not spent on its mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ELSEWHERE = ("lose", "Illegal")  # run by the process that is to fail
TRACED = """
import json, runpy, sys
folder, out, *arguments = sys.argv[1:]
ran = set()

def line(frame, event, argument):
    ran.add((frame.f_code.co_filename, frame.f_lineno))
    return line

def call(frame, event, argument):
    return line if frame.f_code.co_filename.startswith(folder) else None

sys.path.insert(0, folder)
sys.argv = [folder + "/gpu.py", *arguments]
sys.settrace(call)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    sys.settrace(None)
    open(out, "w").write(json.dumps(sorted(ran)))
"""


def lines_of(file: Path) -> set[int]:
    """The lines that have code, but for what another process runs."""
    found, left = set(), [compile(file.read_text("utf-8"), str(file), "exec")]
    while left:
        code = left.pop()
        found |= {line for _, _, line in code.co_lines() if line}
        left += [each for each in code.co_consts if hasattr(each, "co_lines") and each.co_name not in ELSEWHERE]
    return found


@pytest.mark.slow
def test_every_line_of_the_gpu_benchmark_runs_in_a_rehearsal(tmp_path: Path) -> None:
    out, ran = tmp_path / "gpu.jsonl", tmp_path / "ran.json"
    command = [sys.executable, "-c", TRACED, str(BENCHMARKS), str(ran), "--device", "cpu", "--rehearse",
               "--out", str(out)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    lines = {line.pop("part"): line for line in map(json.loads, out.read_text().splitlines())}
    assert lines.pop("breaks")["error"] == "RuntimeError: as it should"
    assert lines.pop("overruns")["error"] == "not done after 0.2 s"
    assert len(lines) == 17
    assert [f"{name}: {line['error']}" for name, line in lines.items() if "error" in line] == []
    assert lines["attention"]["wrong"] == []
    assert lines["offload"]["same_bytes"]
    assert lines["loading"]["same_bytes"]
    assert "IndexError" in lines["failures"]["said"]
    assert lines["tests"]["failed"] == []
    assert re.match(r"\d+ skipped, \d+ deselected", lines["tests"]["said"])
    done_lines = {(file, line) for file, line in json.loads(ran.read_text())}
    files = [BENCHMARKS / "gpu.py", *(BENCHMARKS / "gpu_parts").glob("*.py")]
    missed = [
        (file.name, line) for file in files for line in sorted(lines_of(file)) if (str(file), line) not in done_lines
    ]
    assert not missed


def test_the_parts_need_no_more_time_than_there_is() -> None:
    code = "import gpu; print(sum(gpu.PARTS.values()), gpu.TOTAL_S)"
    told = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    parts, total = map(float, told.stdout.split())
    assert parts <= total
