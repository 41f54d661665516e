"""A run that is killed or stopped loses nothing that was done, and what is remembered keeps to its budget."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import studio
from studio.recipe import MediaRef
from studio.store import Store
from studio.workflow.result_cache import ResultCache

PLUGIN = '''
import time
from pathlib import Path

import studio


class Slow(studio.Generator):
    """Add a letter after a while, and note that it did."""

    name = "slow"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="the text")
        seconds: float = studio.field(0.05, help="how long")

    def generate(self, model, inputs, rng):
        time.sleep(inputs.seconds)
        with Path(__file__).with_name("made.log").open("a") as file:
            file.write(inputs.text + "\\\\n")
        return studio.Text(inputs.text + "x")


@studio.hookimpl
def studio_generators():
    return [Slow()]
'''.replace("\\\\n", "\\n")
NODES = 9


class Flow:
    """A chain of nodes that `studio run` works at in a process of its own."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.plugin = folder, folder / "slow.py"
        self.plugin.write_text(PLUGIN)
        lines = ["name: chain", "nodes:"]
        for index in range(NODES):
            text = f"${{n{index - 1}}}" if index else "a"
            lines.append(f'  n{index}: {{use: slow, inputs: {{text: "{text}", seconds: {seconds}}}}}')
        lines += ["outputs:", f"  last: ${{n{NODES - 1}}}", ""]
        (folder / "chain.yaml").write_text("\n".join(lines))

    def begin(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "studio", "--home", str(self.folder / "home"), "--plugin", str(self.plugin),
                   "--device", "cpu", "run", str(self.folder / "chain.yaml"), "--json"]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def made(self) -> list[str]:
        log = self.folder / "made.log"
        return log.read_text().split() if log.exists() else []

    def wait_for(self, count: int, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 60
        while len(self.made()) < count and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """Again and again. Each node is made at most once more for each kill, and what is there is whole."""
    flow, rng, kills = Flow(tmp_path, 0.02), random.Random(1), 0
    while True:
        process = flow.begin()
        flow.wait_for(len(flow.made()) + rng.randrange(1, 4), process)
        time.sleep(rng.random() * 0.03)
        process.kill()
        out, _ = process.communicate(timeout=500)
        if process.returncode == 0:
            break
        kills += 1
        store = Store(tmp_path / "home")
        for sha256 in store:
            store.get(sha256)  # raises for what is damaged
        assert kills < 40
    assert kills >= 3
    assert Path(json.loads(out)["outputs"]["last"]["path"]).read_text() == "a" + "x" * NODES
    assert max(Counter(flow.made()).values()) <= 1 + kills
    assert len(flow.made()) <= NODES + 2 * kills, "what was done was remembered"


def test_control_c_ends_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    flow = Flow(tmp_path, 0.1)
    process = flow.begin()
    flow.wait_for(3, process)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=500)
    assert process.returncode == 130, told
    assert (out, "Traceback" in told) == ("", False)
    done = len(flow.made())
    assert done < NODES
    again = flow.begin()
    out, told = again.communicate(timeout=500)
    assert again.returncode == 0, told
    states = Counter(node["state"] for name, node in json.loads(out)["nodes"].items() if not name.startswith("."))
    assert states["remembered"] >= 2
    assert states["remembered"] + states["done"] == NODES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_over_its_budget_the_memo_forgets_what_was_used_least_recently(store: Store) -> None:
    """What somebody asked for, or stored again, is never removed; recipes stay."""

    def made(letter: str) -> MediaRef:
        text = studio.Text(letter * 1000)
        store.put(text)
        return MediaRef(sha256=text.sha256, media_type=text.media_type)

    refs = {letter: made(letter) for letter in "abcd"}
    with ResultCache(store, budget=2500) as cache:
        for letter, ref in refs.items():
            cache.add(letter, ref, intermediate=letter != "a")
        cache.finish(list("abcd"), [refs["a"].sha256])
    with ResultCache(store, budget=2500) as cache:
        assert [letter for letter in "abcd" if cache.find(letter)] == ["a", "c", "d"]
        cache.finish(["c"], [])
        cache.add("e", made("e"), intermediate=True)
        cache.finish(["e"], [])
        assert [letter for letter in "abcde" if cache.find(letter)] == ["a", "c", "e"]
    assert store.find(refs["a"].sha256)
