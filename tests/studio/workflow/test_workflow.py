"""Workflows: their checks, runs, memory, failures, and files that are wrong or hostile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import studio
from studio.errors import StudioError, WorkflowError

ROOT = Path(__file__).parents[3]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
PLUGIN = '''
import studio


class Shout(studio.Generator):
    """Write a text in capitals; fail at one."""

    name = "shout"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="the text")

    def generate(self, model, inputs, rng):
        if inputs.text == "bad":
            raise ValueError("no shouting")
        return studio.Text(inputs.text.upper())


class Greet(studio.Generator):
    """Name a person and a day."""

    name = "greet"
    output = studio.Text

    class Inputs(studio.Inputs):
        name: str = studio.field(help="the person")
        when: str = studio.field(help="the day")
        times: int = studio.field(1, ge=1, le=9, help="how often")

    def generate(self, model, inputs, rng):
        return studio.Text(", ".join([f"{inputs.name} {inputs.when}"] * inputs.times))


@studio.hookimpl
def studio_generators():
    return [Shout(), Greet()]
'''
SIX = """
name: six
inputs:
  a: {type: text, help: "one"}
  b: {type: text, help: "two"}
nodes:
  one: {use: shout, inputs: {text: "${a}"}}
  two: {use: shout, inputs: {text: "${b}"}}
  three: {use: shout, inputs: {text: "${one} and more"}}
  four: {use: shout, inputs: {text: "${two} and more"}}
  five: {use: shout, inputs: {text: "${three}, ${four}"}}
  six: {use: shout, inputs: {text: "${two}!"}}
outputs:
  five: ${five}
  six: ${six}
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "shouting.py").write_text(PLUGIN)
    return tmp_path / "shouting.py"


@pytest.fixture
def host(tmp_path: Path, plugin: Path) -> Iterator[studio.Studio]:
    with studio.Studio(home=tmp_path / "home", device="cpu", plugins=[plugin]) as host:
        yield host


def written(folder: Path, text: str) -> Path:
    (folder / "flow.yaml").write_text(text, "utf-8")
    return folder / "flow.yaml"


def states(result: studio.FlowResult) -> dict[str, str]:
    """The nodes that run something; an output stands behind a dot."""
    return {name: report.state for name, report in result.nodes.items() if not name.startswith(".")}


def test_only_what_hangs_on_a_change_runs_again_also_in_a_new_process(
    tmp_path: Path, plugin: Path, host: studio.Studio
) -> None:
    file = written(tmp_path, SIX)
    first = host.run(file, a="x", b="y")
    assert set(states(first).values()) == {"done"}
    assert first["five"].text == "X AND MORE, Y AND MORE"
    again = host.run(file, a="other", b="y")
    assert {name for name, state in states(again).items() if state == "done"} == {"one", "three", "five"}
    assert again["five"].text == "OTHER AND MORE, Y AND MORE"
    assert set(states(host.run(file, a="x", b="y", fresh=True)).values()) == {"done"}
    command = [sys.executable, "-m", "studio", "--home", str(tmp_path / "home"), "--plugin", str(plugin), "--device",
               "cpu", "run", str(file), "-p", "a=x", "-p", "b=y", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    nodes = json.loads(done.stdout)["nodes"]
    made = {name: node["state"] for name, node in nodes.items() if not name.startswith(".")}
    assert set(made.values()) == {"remembered"}


def test_a_run_has_a_bounded_number_of_executions_under_way(
    tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.workflow.run.MAX_UNDER_WAY", 2)
    file = written(
        tmp_path,
        "name: many\ninputs:\n  words: {type: text, list: true, help: words}\nnodes:\n"
        "  one: {use: shout, map: '${words}', inputs: {text: '${item}'}}\noutputs:\n  all: ${one}\n",
    )
    with studio.Studio(home=tmp_path / "home", device="cpu", plugins=[plugin], max_requests=2) as host:
        assert host.run(file, words=[*"abcdefg"])["all"] == [*"ABCDEFG"]
        assert set(states(host.run(file, words=["x", "bad", *"yz"])).values()) == {"failed"}


def test_a_failed_node_takes_its_descendants_alone_and_a_second_run_goes_on(
    tmp_path: Path, host: studio.Studio
) -> None:
    file = written(tmp_path, SIX)
    failed = host.run(file, a="bad", b="y")
    assert states(failed) == {
        "one": "failed", "two": "done", "three": "dropped", "four": "done", "five": "dropped", "six": "done",
    }  # fmt: skip
    assert "no shouting" in str(failed.nodes["one"].error)
    assert list(failed.outputs) == ["six"]
    mended = host.run(file, a="good", b="y")
    assert {name for name, state in states(mended).items() if state == "remembered"} == {"two", "four", "six"}


def test_the_same_graph_from_python(tmp_path: Path, host: studio.Studio) -> None:
    flow = studio.Workflow()
    word = flow.input("word", "text")
    loud = flow.add("shout", text=word)
    flow.output("all", flow.add("shout", text=f"{loud}, twice"))
    result = host.run(flow, word="hello")
    assert result["all"].text == "HELLO, TWICE"
    assert len(list(host.ancestry(result["all"].sha256).in_order())) == 2
    assert host.replay(result["all"].sha256).identical


def test_inputs_with_the_name_of_an_option_are_given_as_a_mapping(tmp_path: Path, plugin: Path) -> None:
    flow = studio.Workflow()
    node = flow.add("greet", {"name": "Ann", "when": "today"}, name="first", times=2)
    flow.output("all", node)
    with studio.Studio(home=tmp_path / "home", device="cpu", plugins=[plugin]) as host:
        result = host.run(flow)
    assert result["all"].text == "Ann today, Ann today"
    assert "first" in result.nodes


def test_everything_wrong_is_told_at_once_with_lines_and_the_nearest_names(tmp_path: Path, host: studio.Studio) -> None:
    text = SIX.replace('use: shout, inputs: {text: "${two}!"}', 'use: shoutt, inputs: {text: "${two}!"}')
    text = text.replace('"${one} and more"', '"${on} and more"').replace('{text: "${b}"}', '{txt: "${b}"}')
    with pytest.raises(WorkflowError) as caught:
        host.workflow(written(tmp_path, text))
    said = str(caught.value)
    for line, words in ((8, "txt"), (9, "on"), (12, "shoutt")):
        assert any(f"flow.yaml:{line}:" in each and words in each for each in said.splitlines()), said
    assert "did you mean" in said


def test_a_cycle_and_a_wrong_wire_are_refused(tmp_path: Path, host: studio.Studio) -> None:
    text = SIX.replace('{text: "${a}"}', '{text: "${five}"}')
    with pytest.raises(WorkflowError, match="five"):
        host.workflow(written(tmp_path, text))
    wrong = SIX.replace(
        'six: {use: shout, inputs: {text: "${two}!"}}', 'six: {use: clip-rank, inputs: {text: "x", images: "${two}"}}'
    )
    with pytest.raises(WorkflowError, match="`images` of `clip-rank` must be a list, each a picture, not text"):
        host.workflow(written(tmp_path, wrong))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [x, x]\nb: [*a, *a]", "anchor"),
        ("a: &a\n  b: *a", "anchor"),
        ("name: x\nname: y", "duplicate key"),
        ("!!python/object/apply:os.system ['true']", "tag"),
        ("nodes: " + "[" * 100 + "]" * 100, "deep"),
        (SIX.replace("${a}", "${''.__class__.__mro__}"), "__mro__"),
        (SIX.replace("${a}", "${a.__class__}"), "__class__"),
        (SIX.replace("${a}", "{% for i in range(10**9) %}x{% endfor %}"), "list"),
        (SIX.replace("${a}", "${range(10**9)}"), "a call"),
        (SIX.replace("${a}", "${a * 10**9}"), "cannot contain"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, host: studio.Studio, text: str, reason: str) -> None:
    with pytest.raises(WorkflowError, match=reason):
        host.workflow(written(tmp_path, text))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_python_values_that_no_workflow_holds_are_refused(value: object) -> None:
    with pytest.raises(studio.errors.UsageError, match="workflows cannot hold values of type"):
        studio.Workflow().add("shout", text=value)


def test_files_that_are_no_text_or_too_large_are_refused(tmp_path: Path, host: studio.Studio) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(StudioError):
        host.workflow(tmp_path / "bad.yaml")
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * (10 << 20))
    with pytest.raises(StudioError, match="larger"):
        host.workflow(tmp_path / "large.yaml")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_an_error_or_a_graph(tmp_path: Path, host: studio.Studio, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([SIX, *(file.read_text("utf-8") for file in PIPELINES)]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(len(text), at + 12)))
        put = data.draw(
            st.sampled_from(["", "${", "}", ":", "- ", "\n", "  ", "[", "]", "{", "&a ", "*a", "!!x ", "0"])
        )
        text = text[:at] + put + text[until:]
    with contextlib.suppress(StudioError):
        assert host.workflow(written(tmp_path, text)).outputs is not None


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_shipped_pipelines_are_right_and_can_be_drawn(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studio", "--home", str(tmp_path), "flow"]
    checked = subprocess.run([*command, "check", str(file)], capture_output=True, text=True, check=True, timeout=500)
    assert "\noutput " in checked.stdout
    drawn = subprocess.run([*command, "draw", str(file)], capture_output=True, text=True, check=True, timeout=500)
    assert drawn.stdout.startswith(("flowchart", "graph"))


def test_best_of_several_pictures(tmp_path: Path) -> None:
    with studio.Studio(home=tmp_path, device="cpu", invariant=True) as host:
        asked = {"prompt": "a red apple", "n": 3, "keep": 1, "steps": 2}
        result = host.run(ROOT / "pipelines" / "best.yaml", **asked)
        assert not result.failed
        (best,) = result["best"]
        assert best.size == (128, 128)
        assert result["sheet"].size[0] >= 3 * 64
        again = states(host.run(ROOT / "pipelines" / "best.yaml", **asked))
        assert {name: again[name] for name in ("pictures", "scores", "labels", "sheet")} == dict.fromkeys(
            ("pictures", "scores", "labels", "sheet"), "remembered"
        )
        assert host.replay(result["sheet"].sha256).identical


def test_an_idea_is_illustrated_and_told_in_scenes(tmp_path: Path) -> None:
    """The text model's words lead the pictures, and the sheet can be made again from the words at its root."""
    with studio.Studio(home=tmp_path, device="cpu", invariant=True) as host:
        drawn = host.run(ROOT / "pipelines" / "illustrate.yaml", idea="a crisp red fruit", n=2, steps=2)
        assert not drawn.failed
        assert drawn["best"].recipe.spec.inputs["prompt"] == drawn["prompt"].text
        assert host.replay(drawn["sheet"].sha256).identical
        told = host.run(ROOT / "pipelines" / "storyboard.yaml", theme="the sea", scenes=2, steps=2, temperature=1)
        assert not told.failed
        prompts = [picture.recipe.spec.inputs["prompt"] for picture in told["pictures"]]
        assert prompts == [scene.text for scene in told["story"]]
        assert len(set(prompts)) == 2


def test_a_picture_is_told_in_a_word_and_varied(tmp_path: Path) -> None:
    with studio.Studio(home=tmp_path, device="cpu") as host:
        picture = host.image("a house", seed=1, steps=4)
        asked = {"picture": picture, "strengths": [0.5, 1.0], "steps": 3, "words": ["house", "apple"]}
        varied = host.run(ROOT / "pipelines" / "variations.yaml", **asked)
        assert not varied.failed
        assert varied["word"].text in ("house", "apple")
        assert [each.recipe.spec.inputs["strength"] for each in varied["pictures"]] == [0.5, 1]
