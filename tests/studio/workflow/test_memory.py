"""Cached results when the store or the result cache is damaged; empty lists; the built-in workflows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

import studio
from studio.cli.main import run
from studio.errors import UnknownName, WorkflowError

CHAIN = """
name: chain
nodes:
  one: {use: template, inputs: {text: "hello"}}
  two: {use: template, inputs: {text: "${one} again"}}
outputs:
  two: ${two}
"""
MAPPED = """
name: mapped
inputs:
  words: {type: text, list: true, default: [], help: "words"}
nodes:
  each: {use: template, map: "${words}", inputs: {text: "<${item}>"}}
  then: {use: template, map: "${each}", inputs: {text: "${item}!"}}
  count: {use: template, inputs: {text: "${each | length}"}}
outputs:
  then: ${then}
  count: ${count}
"""
PICTURES = """
name: pictures
inputs:
  n: {type: int, default: 0, help: "how many"}
  given: {type: image, help: "one"}
nodes:
  each: {use: grid, repeat: "${n}", inputs: {images: ["${given}"]}}
  scores: {use: clip-rank, inputs: {text: "red", images: "${each}"}}
  best: {pick: "${each}", by: "${scores}", best: 1}
  after: {use: grid, inputs: {images: "${best}"}}
outputs:
  each: ${each}
  after: ${after}
"""


@pytest.fixture
def host(own_home: Path) -> Iterator[studio.Studio]:
    with studio.Studio(device="cpu") as host:
        yield host


def written(folder: Path, text: str) -> Path:
    (folder / "flow.yaml").write_text(text, "utf-8")
    return folder / "flow.yaml"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("node", ["hello", "hello again"])
def test_a_damaged_artifact_is_made_again(
    tmp_path: Path, host: studio.Studio, damage: Callable[[Path], object], node: str
) -> None:
    file = written(tmp_path, CHAIN)
    host.run(file)
    damage(host.store.get(studio.Text(node).sha256).path)
    again = host.run(file)
    assert again["two"].text == "hello again"
    assert host.store.open(studio.Text(node).sha256).data == node.encode()
    assert {name: each.state for name, each in again.nodes.items() if name in ("one", "two")} == {
        "one": "done" if node == "hello" else "remembered", "two": "remembered" if node == "hello" else "done",
    }  # fmt: skip


def test_a_damaged_recipe_and_a_damaged_memo_cost_a_run_only(tmp_path: Path, host: studio.Studio) -> None:
    file = written(tmp_path, CHAIN)
    host.run(file)
    host.store.get(studio.Text("hello").sha256).path.with_suffix(".json").write_text("{", "utf-8")
    again = host.run(file)
    assert again.nodes["one"].state == "done"
    assert any("damaged" in each for each in again.nodes["one"].notices)
    assert host.store.recipe(studio.Text("hello").sha256) is not None
    (host.home / "memo.sqlite3").write_bytes(b"garbage" * 1000)
    third = host.run(file)
    assert third["two"].text == "hello again"
    assert any("has been recreated" in each for each in third.nodes["one"].notices)
    assert host.run(file).nodes["two"].state == "remembered"


def test_mapping_over_nothing_gives_nothing(tmp_path: Path, host: studio.Studio) -> None:
    file = written(tmp_path, MAPPED)
    empty = host.run(file)
    assert (empty["then"], empty["count"].text, empty.failed) == ([], "0", [])
    assert host.run(file, words=[])["then"] == []
    assert [each.text for each in host.run(file, words=["a", "b"])["then"]] == ["<a>!", "<b>!"]


def test_what_needs_a_member_of_an_empty_list_is_skipped(tmp_path: Path, host: studio.Studio) -> None:
    none = host.run(written(tmp_path, PICTURES), given=studio.Image(PIL.Image.new("RGB", (8, 8))))
    assert none.outputs == {"each": []}
    assert {name: none.nodes[name].state for name in ("each", "scores", "best", "after")} == {
        "each": "done", "scores": "skipped", "best": "skipped", "after": "skipped",
    }  # fmt: skip
    assert "`images` is an empty list" in none.nodes["scores"].notices[0]


def test_the_workflows_that_ship_run_by_name_from_any_folder(
    tmp_path: Path, host: studio.Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert host.workflow("best").name == "best"
    assert run(["run", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"best", "search", "animate"} <= {each["name"] for each in listed}
    assert all(each["about"] and host.workflow(each["name"]).outputs for each in listed)
    with pytest.raises(UnknownName, match="did you mean `best`"):
        host.workflow("bets")
    with pytest.raises(WorkflowError, match="cannot read"):
        host.workflow("best.yaml")
    (tmp_path / "best").write_text(CHAIN, "utf-8")
    assert host.workflow("best").name == "chain", "a file that is there comes first"
    assert run(["run"]) == 2
