"""A forked process is like one that was started: arguments, streams, exit codes, signals, and nothing shared."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import forkserver

ENDS = """
import atexit, sys, threading
atexit.register(print, "at exit")
threading.Thread(target=lambda: print("thread")).start()
print(*sys.argv, sys.stdin.read())
"""


@pytest.mark.parametrize(
    "code",
    [
        ENDS, ENDS + "sys.exit(3)", ENDS + "sys.exit('a reason')", ENDS + "sys.exit()", "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)", "import os; print(os.getcwd(), os.environ)",
        "print(__name__, chr(0x4e00)); import __main__; print(sorted(vars(__main__)))",
    ],
)  # fmt: skip
def test_it_is_like_one_that_was_started(tmp_path: Path, code: str) -> None:
    arguments, env = ["-c", code, "some", "words"], {"LANG": "C.UTF-8", "NAME": "a value"}
    there = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=env, input="said", capture_output=True,
                           text=True, encoding="utf-8", check=False)  # fmt: skip
    here = forkserver.run(arguments, cwd=tmp_path, env=env, input="said")
    assert (here.returncode, here.stderr.splitlines()[-1:]) == (there.returncode, there.stderr.splitlines()[-1:])
    known = "'__builtins__', "
    assert here.stdout.replace(known, "") == there.stdout.replace(known, "").replace("'__annotations__', ", "")


def test_modules_and_files_are_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; print(__name__, sys.argv[1:]); sys.exit(4)")
    for arguments in (["mine.py", "a"], ["-m", "mine", "a"]):
        ran = forkserver.run(arguments, cwd=tmp_path)
        assert (ran.returncode, ran.stdout) == (4, "__main__ ['a']\n")


def test_an_error_is_shown() -> None:
    ran = forkserver.run(["-c", "1 / 0"])
    assert ran.returncode == 1
    assert ran.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_several_run_at_once_and_are_killed_each() -> None:
    with tempfile.TemporaryFile() as out:
        processes = [forkserver.start(["-c", "import time; time.sleep(99)"], stdout=out) for _ in range(2)]
        quick = forkserver.start(["-c", "print('quick')"], stdout=out)
        assert quick.wait() == 0
        assert [each.poll() for each in processes] == [None, None]
        processes[1].kill()
        assert processes[1].wait() == -signal.SIGKILL
        processes[0].send_signal(signal.SIGTERM)
        assert processes[0].wait() == -signal.SIGTERM
        out.seek(0)
        assert out.read() == b"quick\n"


def test_nothing_is_shared() -> None:
    assert forkserver.run(["-c", "import studio; studio.mine = 1"]).returncode == 0
    assert forkserver.run(["-c", "import studio; print(hasattr(studio, 'mine'))"]).stdout == "False\n"
