"""Killed at any moment, taken up by another process, and the same to the last byte."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

import studio
from studio.engine import Failed, Notice
from studio.engine.checkpoints.checkpoint import Checkpoint
from studio.errors import CheckpointError, UnknownName, WeightsError
from studio.home import default_home
from tests import forkserver

TOY = Path(__file__).parents[1] / "toy_plugin.py"
# A victim saves after every step from the first on, so that a kill may fall into a save as well as into a step.
VICTIM = """
import sys, studio
from studio.engine.checkpoints import autosave
autosave.YOUNGEST_S, autosave.SHARE, autosave._LOOK_EVERY_S = 0, 1e6, 0
name, plugin, seed, inputs = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
host = studio.Studio(plugins=[plugin] if plugin else [], device="cpu")
tickets = [host.submit(name, seed=seed + i, **each) for i, each in enumerate(inputs)]
print([ticket.result().sha256 for ticket in tickets])
"""


def saved():
    while True:
        try:
            return sorted(default_home().glob("running/[!.]*/*.safetensors"))  # a hidden folder is about to be renamed
        except FileNotFoundError:  # a folder of the dead was swept while it was looked at
            continue


def positions():
    """How far the saved requests are; one that is moved meanwhile is passed over."""
    for path in saved():
        with suppress(CheckpointError, FileNotFoundError):
            yield Checkpoint.open(path).progress.position


def victim(name, inputs, plugin=TOY, seed=1):
    arguments = ["-c", VICTIM, name, str(plugin), str(seed), repr(inputs)]
    return forkserver.start(arguments, stdout=subprocess.DEVNULL)


def wait_until(process, true):
    """Wait for something that the process does while it lives."""
    while process.poll() is None and not true():
        time.sleep(0.002)


def kill_when_saved(process, delay, count=1):
    """Kill -9 `delay` seconds after the first states were saved; whether it came before the end."""
    wait_until(process, lambda: len(saved()) >= count)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL and bool(saved())


def kill_at(process, position):
    """Kill -9 once a state at this position or later was saved; whether it came before the end."""
    wait_until(process, lambda: any(each >= position for each in positions()))
    process.kill()
    return process.wait() == -signal.SIGKILL and bool(saved())


def crash(name, count=1, **inputs):
    """Leave `count` unfinished requests behind."""
    assert kill_when_saved(victim(name, [inputs] * count), 0.02, count)


def resume(*arguments, plugin=TOY):
    loaded = ["--plugin", str(plugin)] if plugin else []
    return forkserver.run(["-m", "studio", *loaded, "--device", "cpu", "resume", *arguments])


def check_kills(name, kills, rng, inputs, plugin=TOY):
    """Kill as many times, at random points, and resume; every resumed request makes what an undisturbed one makes."""
    with studio.Studio(plugins=[plugin] if plugin else [], device="cpu") as host:
        whole = host.generate(name, seed=1, **inputs)
        expected = (whole.sha256, whole.recipe.portable(), whole.path.read_bytes())
        killed_at = set()
        for _ in range(kills):
            while not kill_at(victim(name, [inputs], plugin), rng.randrange(1, inputs["steps"] * 3 // 4)):
                pass  # it ended before it was seen to be there
            killed_at.add(Checkpoint.open(saved()[0]).progress.position)
            shutil.rmtree(default_home() / "objects")
            ran = resume("--json", plugin=plugin)
            assert ran.returncode == 0, ran.stderr
            made = host.load(json.loads(ran.stdout)[0]["sha256"])
            assert (made.sha256, made.recipe.portable(), made.path.read_bytes()) == expected
            assert not saved(), "a checkpoint goes with its request"
        assert len(killed_at) > kills // 3, "the points differ"


def test_killed_at_four_points_and_resumed_to_the_same_bytes():
    check_kills("chain", 4, random.Random(), {"steps": 100})


@pytest.mark.slow
def test_killed_at_fifty_points_and_resumed_to_the_same_bytes():
    check_kills("walker", 50, random.Random(), {"steps": 100})


@pytest.mark.slow
def test_pictures_killed_and_resumed_are_the_same_files():
    inputs = {"prompt": "a red apple", "steps": 150, "size": "128x128"}
    check_kills("image", 5, random.Random(), inputs, plugin="")


def test_tensors_survive_a_kill_and_a_second_one():
    crash("walker", steps=60)
    first = Checkpoint.open(saved()[0]).progress.position
    again = VICTIM.partition("tickets =")[0] + "print([t.result() for t in host.resume().tickets.values()])"
    second = forkserver.start(["-c", again, "walker", str(TOY), "1", "[]"], stdout=subprocess.DEVNULL)
    wait_until(second, lambda: any(position >= first + 3 for position in positions()))
    second.kill()
    assert second.wait() == -signal.SIGKILL
    with studio.Studio(plugins=[TOY], device="cpu") as host:
        (ticket,) = host.resume().tickets.values()
        assert ticket.result() == host.generate("walker", seed=1, steps=60)


def test_parents_and_the_client_survive_a_kill():
    spec = studio.JobSpec(
        generator="chain", inputs={"steps": 400}, seed=4, parents=("a" * 64,), client="ann", label="mine"
    )
    code = VICTIM.partition("tickets =")[0] + "host.submit(studio.JobSpec.parse(name)).result()"
    assert kill_when_saved(forkserver.start(["-c", code, spec.to_json(), str(TOY), "1", "[]"]), 0.02)
    with studio.Studio(plugins=[TOY], device="cpu") as host:
        (ticket,) = host.resume().tickets.values()
        assert (ticket.request.spec.client, ticket.request.spec.label) == ("ann", "mine")
        made = ticket.result()
        assert made.recipe.parents == spec.parents
        assert made.recipe.portable() == host.generate(spec).recipe.portable()


def test_the_command_lists_chooses_and_drops():
    crash("chain", count=3, steps=400)
    rows = [line.split("\t") for line in resume("--list").stdout.splitlines()]
    assert [row[1] for row in rows] == ["chain"] * 3
    assert sorted(row[2] for row in rows) == ["1", "2", "3"]
    several = resume()
    assert (several.returncode, several.stderr.splitlines()) == (
        2, ["error: 3 requests are unfinished", "hint: give their ids, or --all; `studio resume --list` lists them"],
    )  # fmt: skip
    assert resume(rows[0][0], "--drop").returncode == 0
    assert resume("nonsense").returncode == 2
    ran = resume(rows[1][0])
    assert (ran.returncode, len(ran.stdout.splitlines())) == (0, 1)
    assert [each["id"] for each in json.loads(resume("--list", "--json").stdout)] == [rows[2][0]]


def test_what_lives_is_nobody_elses():
    process = victim("chain", [{"steps": 1000, "pause": 0.02}])
    wait_until(process, saved)
    with studio.Studio(plugins=[TOY], device="cpu") as host:
        assert host.unfinished() == []
        with pytest.raises(UnknownName, match="no unfinished request"):
            host.resume(saved()[0].stem)
        process.kill()
        process.wait()
        assert [each.id for each in host.unfinished()] == [saved()[0].stem]


def test_damaged_and_foreign_ones_are_refused_and_the_others_go_on():
    crash("chain", count=3, steps=200)
    damaged, foreign, good = saved()
    damaged.write_bytes(damaged.read_bytes().replace(b"begun", b"began"))
    foreign.write_bytes(b"not a checkpoint")
    with studio.Studio(plugins=[TOY], device="cpu") as host:
        assert [each.id for each in host.unfinished() if each.error] == [foreign.stem]
        resumed = host.resume()
        assert isinstance(resumed.refused[foreign.stem], CheckpointError)
        with pytest.raises(CheckpointError, match="its contents do not match its sha256"):
            resumed.tickets[damaged.stem].result(500)
        assert resumed.tickets[good.stem].result(500)
    assert {path.name for path in saved()} == {damaged.name, foreign.name}, "nothing is lost by looking"
    ran = resume("--all", "--json")
    assert ran.returncode == 1
    assert {each["id"]: "cannot be resumed" in each["error"] for each in json.loads(ran.stdout)} == {
        damaged.stem: True, foreign.stem: True,
    }  # fmt: skip


def left_behind(monkeypatch, **changed):
    crash("chain", steps=100)
    host = studio.Studio(plugins=[TOY], device="cpu")
    for name, value in changed.items():
        monkeypatch.setattr(type(host.generators["chain"]), name, value)
    return host


def test_another_version_is_refused_with_the_reason(monkeypatch):
    with left_behind(monkeypatch, version="2") as host:
        (error,) = host.resume().refused.values()
    assert "the version of `chain` changed: 1 -> 2" in str(error)
    assert len(saved()) == 1, "it is kept for when the version is back"


def test_other_weights_are_refused_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"new")
    with left_behind(monkeypatch, weights=lambda self, ref: [tmp_path / "w.safetensors"]) as host:
        (error,) = host.resume().refused.values()
        assert "the weights changed: `w.safetensors`" in str(error)
        monkeypatch.setattr(type(host.generators["chain"]), "weights", lambda self, ref: [tmp_path / "gone"])
        assert isinstance(next(iter(host.resume().refused.values())), WeightsError)


def test_a_generator_that_is_gone_is_refused(sample_plugin):
    crash("chain", steps=100)
    with studio.Studio(plugins=[sample_plugin], device="cpu") as host:
        (error,) = host.resume().refused.values()
        assert "`chain` needs the plugin `toy_plugin`" in error.message
        assert "--plugin PATH" in error.hint


def test_a_generator_that_fails_on_resuming_ends_its_request(monkeypatch):
    def broken(self, model, inputs, rng):
        raise ValueError("no more")

    with left_behind(monkeypatch, start=broken) as host:
        (ticket,) = host.resume().tickets.values()
        last = list(ticket.events())[-1]
        assert isinstance(last, Failed)
        assert "no more" in last.error.message
        assert saved() == [], "it failed by its own fault"


def test_a_changed_plugin_is_told(tmp_path):
    own = Path(shutil.copy(TOY, tmp_path / "toy_plugin.py"))
    assert kill_when_saved(victim("chain", [{"steps": 100}], plugin=own), 0.02)
    own.write_text(own.read_text() + "\n# changed\n")
    with studio.Studio(plugins=[own], device="cpu") as host:
        (ticket,) = host.resume().tickets.values()
        notices = [event.text for event in ticket.events() if isinstance(event, Notice)]
    assert notices[0] == "begun"
    assert "resumed; the plugin's version changed from `" in notices[1]


def test_nothing_is_left_after_an_ordinary_run():
    with studio.Studio(plugins=[TOY], device="cpu") as host:
        host.generate("chain", steps=3)
    assert list(default_home().glob("running/*")) == []
