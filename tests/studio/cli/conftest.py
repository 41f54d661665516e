"""Run the command line, in this process where that is enough and in its own where a process is what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from studio.cli.main import run

PROBE = Path(__file__).parent / "probe_plugin.py"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Studio = Callable[..., Ran]


@pytest.fixture
def studio(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """Run a command with the probe plugin, in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*argv: str, plugin: Path | None = PROBE) -> Ran:
        capsys.readouterr()
        code = run([*(["--plugin", str(plugin)] if plugin else []), *argv])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command with the probe plugin in a process of its own, in the folder `outside`."""
    folder = tmp_path / "outside"
    folder.mkdir()

    def call(*argv: str, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "studio", "--plugin", str(PROBE), *argv]
        pipes = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "cwd": folder,
            "env": dict(os.environ),
            **options,
        }
        return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    return call


def files(folder: Path) -> list[str]:
    """Everything in a folder, hidden and temporary files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
