"""`studio resume` writes where the killed command was to write, and nowhere that a stranger's data folder says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.cli.main import run
from studio.destination import Destination
from studio.errors import UsageError
from studio.home import default_home
from tests import forkserver

TOY = Path(__file__).parents[2] / "engine" / "toy_plugin.py"
# The command saves after every step, so that a kill finds something soon.
VICTIM = """
import sys
from studio.cli.main import run
from studio.engine.checkpoints import autosave
autosave.YOUNGEST_S, autosave.SHARE, autosave._LOOK_EVERY_S = 0, 1e6, 0
sys.exit(run(sys.argv[1:]))
"""


def saved() -> int:
    return len(list(default_home().glob("running/[!.]*/*.safetensors")))


def kill_midway(*argv: str, count: int) -> None:
    """Run a command and kill it once it has saved `count` more requests than there were."""
    before = saved()
    arguments = ["-c", VICTIM, "--plugin", str(TOY), "--device", "cpu", *argv]
    process = forkserver.start(arguments, stdout=subprocess.DEVNULL)
    while process.poll() is None and saved() < before + count:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def resume(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["--plugin", str(TOY), "--device", "cpu", "resume", *argv])
    return (code, *capsys.readouterr())


def test_it_is_written_where_the_killed_command_was_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    strange = os.fsdecode(b"out\xff")
    kill_midway("generate", "chain", "--steps", "300", "--seed", "5", "-n", "2", "-o", f"{strange}/", count=2)
    Path("there.txt").write_text("in the way", "utf-8")
    kill_midway("generate", "chain", "--steps", "300", "--seed", "7", "-o", "there.txt", "--force", count=1)
    kill_midway("generate", "chain", "--steps", "300", "--seed", "8", count=1)
    monkeypatch.chdir(tmp_path / "other")
    shutil.rmtree(tmp_path / "work" / strange)
    listed = {each["spec"]["seed"]: each["goes_to"] for each in json.loads(resume(capsys, "--list", "--json")[1])}
    folder = f"{tmp_path}/work/{strange}/"
    assert listed == {5: folder, 6: folder, 7: f"{tmp_path}/work/there.txt", 8: "store"}
    code, out, _ = resume(capsys, "--all", "--json")
    assert code == 0
    told = {each["seed"]: each for each in json.loads(out)}
    assert sorted(path.name for path in (tmp_path / "work" / strange).iterdir()) == [
        f"chain-{seed}-{told[seed]['sha256'][:8]}.txt" for seed in (5, 6)
    ]
    assert (tmp_path / "work" / "there.txt").read_text("utf-8") != "in the way"
    assert told[8]["path"] == told[8]["stored"]


def test_a_file_that_came_meanwhile_is_not_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kill_midway("generate", "chain", "--steps", "300", "--seed", "7", "-o", "mine.txt", count=1)
    Path("mine.txt").write_text("came meanwhile", "utf-8")
    code, _, err = resume(capsys)
    assert code == 1
    assert Path("mine.txt").read_text("utf-8") == "came meanwhile"
    assert "mine.txt" in err
    assert "stored as" in err


def test_a_data_folder_from_elsewhere_cannot_say_where_to_write(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kill_midway("generate", "chain", "--steps", "300", "--seed", "7", "-o", "there.txt", "--force", count=1)
    shutil.copytree(own_home, tmp_path / "stranger")
    shutil.rmtree(own_home)
    (tmp_path / "stranger").rename(own_home)
    assert json.loads(resume(capsys, "--list", "--json")[1])[0]["goes_to"] == "store"
    code, out, err = resume(capsys, "--json")
    assert code == 0
    assert not Path("there.txt").exists()
    assert json.loads(out)[0]["path"].startswith(str(own_home))
    assert "saved in another data folder is ignored" in err


@given(name=st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & {0, 47}), force=st.booleans())
def test_any_path_survives_the_way_through_json(
    tmp_path_factory: pytest.TempPathFactory, name: bytes, force: bool
) -> None:
    home = tmp_path_factory.getbasetemp()
    target = Destination(home / os.fsdecode(name), True, force)
    told = json.loads(json.dumps(target.as_json(home)))
    assert Destination.from_json(told, home) == target
    for key in ("path", "folder", "force", "home"):
        with pytest.raises(UsageError):
            Destination.from_json({**told, key: 1}, home)
