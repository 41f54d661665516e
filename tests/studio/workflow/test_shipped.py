"""The built-in workflows: found by name, right, and run from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import studio
from studio.cli.main import run
from studio.errors import UnknownName, WorkflowError
from studio.testing.fake_gpu import FakeGpu
from studio.workflow.shipped import about, shipped

from .conftest import states

PICTURE = studio.Image(Image.new("RGB", (64, 64), "red"))
INPUTS: dict[str, dict[str, object]] = {
    "animate": {"prompt": "a horse", "frames": 4, "steps": 2},
    "best": {"prompt": "a cat", "n": 2, "keep": 1, "steps": 2},
    "compare": {"prompt": "a cat"},
    "illustrate": {"idea": "a cat", "n": 2, "steps": 2},
    "search": {"text": "something red", "pictures": [PICTURE, PICTURE], "best": 1},
    "storyboard": {"theme": "a cat", "scenes": 2, "steps": 2},
    "variations": {"picture": PICTURE, "strengths": [0.3, 0.9], "steps": 4, "words": ["apple", "banana"]},
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[studio.Studio]:
    """One for all, so that each model is loaded once."""
    with studio.Studio(home=tmp_path_factory.mktemp("home"), device="cpu", invariant=True) as host:
        yield host


def test_all_shipped_workflows_are_here() -> None:
    assert {*shipped()} == {*INPUTS}


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_each_is_right_and_can_be_drawn(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["flow", "check", name]) == 0
    assert "\noutput " in capsys.readouterr().out
    assert run(["flow", "draw", name]) == 0
    assert capsys.readouterr().out.startswith("flowchart")
    assert run(["flow", "draw", name, "-o", str(tmp_path / "flow.svg")]) == 0
    assert (tmp_path / "flow.svg").read_text("utf-8").startswith("<svg")
    assert about(shipped()[name])


def test_they_run_by_name_from_any_folder(
    tmp_path: Path, host: studio.Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert host.workflow("best").name == "best"
    assert run(["run", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in listed} == set(INPUTS)
    with pytest.raises(UnknownName, match="did you mean `best`"):
        host.workflow("bets")
    with pytest.raises(WorkflowError, match="cannot read"):
        host.workflow("best.yaml")
    (tmp_path / "best").write_text("name: own\nnodes: {a: {use: template, inputs: {text: x}}}\noutputs: {a: '${a}'}")
    assert host.workflow("best").name == "own", "a file that is there comes first"
    assert run(["run"]) == 2


def test_best_of_several_pictures(host: studio.Studio) -> None:
    asked = {"prompt": "a red apple", "n": 3, "keep": 1, "steps": 2}
    result = host.run("best", **asked)
    assert not result.failed
    (best,) = result["best"]
    assert best.size == (128, 128)
    assert result["sheet"].size[0] >= 3 * 64
    again = states(host.run("best", **asked))
    assert {name: again[name] for name in ("pictures", "scores", "labels", "sheet")} == dict.fromkeys(
        ("pictures", "scores", "labels", "sheet"), "remembered"
    )
    assert host.replay(result["sheet"].sha256).identical


def test_an_idea_is_illustrated_and_told_in_scenes(host: studio.Studio) -> None:
    """The text model's words lead the pictures, and the sheet can be made again from the words at its root."""
    drawn = host.run("illustrate", idea="a crisp red fruit", n=2, steps=2)
    assert not drawn.failed
    assert drawn["best"].recipe.spec.inputs["prompt"] == drawn["prompt"].text
    assert host.replay(drawn["sheet"].sha256).identical
    told = host.run("storyboard", theme="the sea", scenes=2, steps=2, temperature=1)
    assert not told.failed
    prompts = [picture.recipe.spec.inputs["prompt"] for picture in told["pictures"]]
    assert prompts == [scene.text for scene in told["story"]]
    assert len(set(prompts)) == 2


def test_a_picture_is_told_in_a_word_and_varied(host: studio.Studio) -> None:
    picture = host.image("a house", seed=1, steps=4)
    asked = {"picture": picture, "strengths": [0.5, 1.0], "steps": 3, "words": ["house", "apple"]}
    varied = host.run("variations", **asked)
    assert not varied.failed
    assert varied["word"].text in ("house", "apple")
    assert [each.recipe.spec.inputs["strength"] for each in varied["pictures"]] == [0.5, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_each_runs_on_a_gpu(name: str, tmp_path: Path) -> None:
    """The fake one, which raises where tensors of two devices meet."""
    with FakeGpu.installed(), studio.Studio(home=tmp_path / "home", device="gpu:0") as host:
        result = host.run(name, **INPUTS[name])
    assert not result.failed
