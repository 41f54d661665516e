"""Runs: what is done again and what is not, what fails and what goes on, and runs that are killed or stopped."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

import pytest

import studio
from studio.errors import InputError
from studio.store import Store
from tests import forkserver

from . import flow_plugin
from .conftest import SIX, Write, states

PLUGIN = flow_plugin.__file__


def test_only_what_hangs_on_a_change_runs_again_also_in_a_new_process(
    write: Write, own_home: Path, host: studio.Studio
) -> None:
    file = write(SIX)
    first = host.run(file, a="x", b="y")
    assert set(states(first).values()) == {"done"}
    assert first["five"].text == "X AND MORE, Y AND MORE"
    again = host.run(file, a="other", b="y")
    assert {name for name, state in states(again).items() if state == "done"} == {"one", "three", "five"}
    assert again["five"].text == "OTHER AND MORE, Y AND MORE"
    assert set(states(host.run(file, a="x", b="y", fresh=True)).values()) == {"done"}
    command = [sys.executable, "-m", "studio", "--plugin", PLUGIN, "--device", "cpu", "run", str(file),
               "-p", "a=x", "-p", "b=y", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    nodes = json.loads(done.stdout)["nodes"]
    made = {name: node["state"] for name, node in nodes.items() if not name.startswith(".")}
    assert set(made.values()) == {"remembered"}


def test_a_run_has_a_bounded_number_of_executions_under_way(
    write: Write, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.workflow.run.MAX_UNDER_WAY", 2)
    file = write(
        "name: many\ninputs:\n  words: {type: text, list: true, help: words}\nnodes:\n"
        "  one: {use: shout, map: '${words}', inputs: {text: '${item}'}}\noutputs:\n  all: ${one}\n",
    )
    with studio.Studio(device="cpu", plugins=[Path(PLUGIN)], max_requests=2) as host:
        assert host.run(file, words=[*"abcdefg"])["all"] == [*"ABCDEFG"]
        assert set(states(host.run(file, words=["x", "bad", *"yz"])).values()) == {"failed"}


def test_a_failed_node_takes_its_descendants_only_and_a_second_run_goes_on(write: Write, host: studio.Studio) -> None:
    file = write(SIX)
    failed = host.run(file, a="bad", b="y")
    assert states(failed) == {
        "one": "failed", "two": "done", "three": "dropped", "four": "done", "five": "dropped", "six": "done",
    }  # fmt: skip
    assert "no shouting" in str(failed.nodes["one"].error)
    assert "it depends on `one`, which failed" in str(failed.nodes["five"].error)
    assert [report.name for report in failed.failed] == ["one"]
    assert list(failed.outputs) == ["six"]
    mended = host.run(file, a="good", b="y")
    assert {name for name, state in states(mended).items() if state == "remembered"} == {"two", "four", "six"}


MAPPED = """
inputs:
  words: {type: text, list: true, default: [], help: "words"}
nodes:
  each: {use: shout, map: "${words}", inputs: {text: "<${item}>"}}
  then: {use: shout, map: "${each}", inputs: {text: "${number}${item}!"}}
  count: {use: shout, inputs: {text: "${each | length}"}}
outputs:
  then: ${then}
  count: ${count}
"""


def test_mapping_over_nothing_gives_nothing(write: Write, host: studio.Studio) -> None:
    file = write(MAPPED)
    empty = host.run(file)
    assert (empty["then"], empty["count"].text, empty.failed) == ([], "0", [])
    assert host.run(file, words=[])["then"] == []
    some = host.run(file, words=["a", "b"])
    assert [each.text for each in some["then"]] == ["1<A>!", "2<B>!"]
    assert (some.nodes["then"].total, some.nodes["then"].finished) == (2, 2)
    one_more = host.run(file, words=["a", "b", "c"])
    assert (one_more.nodes["each"].total, one_more.nodes["each"].remembered) == (3, 2)


PICTURES = """
inputs:
  n: {type: int, default: 0, help: "how many"}
nodes:
  each: {use: paint, repeat: "${n}", inputs: {width: "${number}"}}
  scores: {use: measure, inputs: {images: "${each}"}}
  best: {pick: "${each}", by: "${scores}", best: 1}
  widest: {pick: "${each}", by: "${scores}"}
  after: {use: measure, inputs: {images: "${best}"}}
outputs:
  each: ${each}
  after: ${after}
  widest: ${widest}
"""


def test_what_needs_a_member_of_an_empty_list_is_skipped(write: Write, host: studio.Studio) -> None:
    file = write(PICTURES)
    none = host.run(file)
    assert none.outputs == {"each": []}
    assert states(none) == {
        "each": "done", "scores": "skipped", "best": "skipped", "widest": "skipped", "after": "skipped",
    }  # fmt: skip
    assert "`images` is an empty list" in none.nodes["scores"].notices[0]
    some = host.run(file, n=3)
    assert some["widest"].size == (3, 8)
    assert some["after"].vector.tolist() == [3]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("{pick: '${words}', by: [1]}", "`pick` has 1 scores for 2 items"),
        ("{pick: '${words}', by: [1, 2], best: '${n}'}", "`best` is 9, but must be a whole number from 1 to 2"),
        ("{use: paint, repeat: '${many}'}", "`repeat` is 1001, but must be a whole number from 0 to 1000"),
        ("{use: paint, seed: '${minus}'}", "`seed` is -1"),
        ("{use: paint, inputs: {width: '${n}', height: '${many}'}}", "`height` is 1001"),
        ("{use: shout, inputs: {text: '${words[7]} '}}", "the template .* fails"),
    ],
)
def test_values_are_checked_when_they_are_known(write: Write, host: studio.Studio, node: str, reason: str) -> None:
    inputs = "inputs: {words: {type: text, list: true}, n: int, many: int, minus: int}\n"
    file = write(f"{inputs}nodes:\n  it: {node}\noutputs: {{o: '${{it}}'}}\n")
    result = host.run(file, words=["a", "b"], n=9, many=1001, minus=-1)
    [report] = result.failed
    assert report.name == "it"
    with pytest.raises(studio.StudioError, match=reason):
        raise report.error or AssertionError


def test_when_and_seeds(write: Write, host: studio.Studio) -> None:
    file = write(
        "inputs: {n: int}\nnodes:\n  few: {use: shout, when: '${n < 3}', inputs: {text: few}}\n"
        "  after: {use: shout, inputs: {text: '${few}!'}}\n  own: {use: paint, seed: '${n}', repeat: 2}\n"
        "  free: {use: paint}\noutputs: {after: '${after}', own: '${own}', free: '${free}'}\n"
    )
    small, large = host.run(file, n=1), host.run(file, n=7, seed=5)
    assert (states(small)["after"], states(large)["few"], states(large)["after"]) == ("done", "skipped", "skipped")
    assert [picture.recipe.spec.seed for picture in large["own"]] == [7, 8]
    assert small["free"].recipe.spec.seed != large["free"].recipe.spec.seed, "it follows the run's seed"
    assert host.run(file, n=2)["free"].recipe.spec.seed == small["free"].recipe.spec.seed
    for seed in (-1, True, 1.0, 1 << 64):
        with pytest.raises(InputError, match="`seed` is"):
            host.run(file, {"n": 1}, seed=seed)


NODES = 9


class Flow:
    """A chain of nodes that `studio run` works at in a process of its own."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.log = folder, folder / "made.log"
        lines = ["name: chain", "nodes:"]
        for index in range(NODES):
            text = f"${{n{index - 1}}}" if index else "a"
            lines.append(
                f'  n{index}: {{use: slow, inputs: {{text: "{text}", seconds: {seconds}, log: "{self.log}"}}}}'
            )
        lines += ["outputs:", f"  last: ${{n{NODES - 1}}}", ""]
        (folder / "chain.yaml").write_text("\n".join(lines))

    def begin(self, **streams: IO[Any] | int) -> forkserver.Process:
        words = ["--plugin", PLUGIN, "--device", "cpu", "run", str(self.folder / "chain.yaml"), "--json"]
        return forkserver.start(["-m", "studio", *words], **streams)

    def made(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def wait_for(self, count: int, process: forkserver.Process) -> None:
        while len(self.made()) < count and process.poll() is None:
            time.sleep(0.002)


def test_killed_in_the_middle(tmp_path: Path, own_home: Path) -> None:
    """Again and again. Each node is made at most once more for each kill, and what is there is whole."""
    flow, rng, kills = Flow(tmp_path, 0.02), random.Random(1), 0
    out = tmp_path / "out"
    while True:
        with out.open("w") as stream:
            process = flow.begin(stdout=stream, stderr=subprocess.DEVNULL)
            flow.wait_for(len(flow.made()) + rng.randrange(1, 4), process)
            time.sleep(rng.random() * 0.03)
            process.kill()
            if process.wait() == 0:
                break
        kills += 1
        store = Store(own_home)
        for sha256 in store:
            store.get(sha256)  # raises for what is damaged
        assert kills < 40
    assert kills >= 3
    assert Path(json.loads(out.read_text())["outputs"]["last"]["path"]).read_text() == "a" + "x" * NODES
    assert max(Counter(flow.made()).values()) <= 1 + kills
    assert len(flow.made()) <= NODES + 2 * kills, "what was done was remembered"


def test_control_c_ends_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    flow = Flow(tmp_path, 0.1)
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stream, err.open("w") as errors:
        process = flow.begin(stdout=stream, stderr=errors)
        flow.wait_for(3, process)
        process.send_signal(signal.SIGINT)
        code = process.wait()
    assert (code, out.read_text(), "Traceback" in err.read_text()) == (130, "", False), err.read_text()
    assert len(flow.made()) < NODES
    with out.open("w") as stream:
        assert flow.begin(stdout=stream).wait() == 0
    nodes = json.loads(out.read_text())["nodes"]
    found = Counter(node["state"] for name, node in nodes.items() if not name.startswith("."))
    assert found["remembered"] >= 2
    assert found["remembered"] + found["done"] == NODES
