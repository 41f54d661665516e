"""Workflows built in Python: handles, names, the lines of problems, and the same graph as from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

import studio
from studio.errors import UsageError, WorkflowError
from studio.workflow import Handle, Workflow, mermaid

from .conftest import GENERATORS, SIX, Write, compiled, states


def test_handles_are_references() -> None:
    story = Handle("story")
    assert (str(story), f"{story}, at night") == ("${story}", "${story}, at night")
    assert f"{Handle('photo').width} {Handle('hero').best.width}" == "${photo.width} ${hero.best.width}"
    assert Handle("scores")[0] == "${scores[0]}"
    assert (str(Workflow.item), str(Workflow.number)) == ("${item}", "${number}")
    with pytest.raises(AttributeError):
        _ = story._hidden


def test_it_is_the_graph_of_the_file() -> None:
    flow = Workflow("six")
    a, b = flow.input("a", "text", help="one"), flow.input("b", "text", help="two")
    one, two = flow.add("shout", text=a, name="one"), flow.add("shout", text=b, name="two")
    three, four = (
        flow.add("shout", text=f"{each} and more", name=name) for each, name in ((one, "three"), (two, "four"))
    )
    flow.output("five", flow.add("shout", text=f"{three}, {four}", name="five"))
    flow.output("six", flow.add("shout", text=f"{two}!", name="six"))
    assert mermaid(flow.compile(GENERATORS)) == mermaid(compiled(SIX))


def test_nodes_are_named_and_numbered() -> None:
    flow = Workflow()
    names = [str(flow.add("paint")), str(flow.add("paint")), str(flow.add("clip-rank")), str(flow.pick([1], by=[1])),
             str(flow.use("sub/flow-er.yaml")), str(flow.add("paint", name="mine"))]  # fmt: skip
    assert names == ["${paint1}", "${paint2}", "${clip_rank1}", "${pick1}", "${flow_er1}", "${mine}"]


def test_a_problem_names_the_line_of_python() -> None:
    flow = Workflow()
    flow.output("all", flow.add("shoutt", text="x"))  # this line
    with pytest.raises(WorkflowError, match=r"test_builder\.py:\d+: no generator is called `shoutt`") as caught:
        flow.compile(GENERATORS)
    line = int(caught.value.message.split(":")[1])
    assert Path(__file__).read_text("utf-8").splitlines()[line - 1].endswith("# this line")


def test_settings_are_those_of_a_file(host: studio.Studio) -> None:
    flow = Workflow("loud", "says it aloud")
    words, sure = flow.input("words", "text", list=True), flow.input("sure", "bool", default=True)
    loud = flow.add("shout", text=f"{flow.number} {flow.item}", map=words, when=f"{sure}".replace("}", " and true}"))
    pictures = flow.add("paint", repeat=3, width=flow.number, seed=7)
    scores = flow.add("measure", images=pictures)
    flow.output("loud", loud)
    flow.output("wide", flow.pick(pictures, by=scores, best=2))
    result = host.run(flow, words=["a", "b"])
    assert result["loud"] == ["1 A", "2 B"]
    assert [picture.size[0] for picture in result["wide"]] == [3, 2]
    assert [picture.recipe.spec.seed for picture in result["wide"]] == [9, 8]
    assert states(host.run(flow, words=["a"], sure=False))["shout1"] == "skipped"


def test_inputs_with_the_name_of_an_option_are_given_as_a_mapping(host: studio.Studio) -> None:
    flow = studio.Workflow()
    node = flow.add("greet", {"name": "Ann", "when": "today"}, name="first", times=2)
    flow.output("all", node)
    result = host.run(flow)
    assert result["all"].text == "Ann today, Ann today"
    assert states(result) == {"first": "done"}


def test_its_outputs_have_recipes_with_parents(host: studio.Studio) -> None:
    flow = Workflow()
    loud = flow.add("shout", text=flow.input("word", "text"))
    flow.output("all", flow.add("shout", text=f"{loud}, twice"))
    result = host.run(flow, word="hello")
    assert result["all"].text == "HELLO, TWICE"
    assert len(list(host.ancestry(result["all"].sha256).in_order())) == 2
    assert host.replay(result["all"].sha256).identical


def test_a_sub_workflow_of_the_working_folder(
    write: Write, tmp_path: Path, host: studio.Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(SIX, "six.yaml")
    monkeypatch.chdir(tmp_path)
    flow = Workflow()
    flow.output("five", flow.use("six.yaml", a="x", b="y").five)
    assert host.run(flow)["five"].text == "X AND MORE, Y AND MORE"


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_python_values_that_no_workflow_holds_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"test_builder\.py:\d+: workflows cannot hold values of type"):
        Workflow().add("shout", text=value)
