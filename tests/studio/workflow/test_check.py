"""Compiling: keys, names and sub-workflows; every problem at once, with its line and the nearest name."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import studio
from studio.errors import StudioError, WorkflowError
from studio.workflow import check
from studio.workflow.document import parse
from studio.workflow.shipped import shipped

from .conftest import SIX, Write, compiled


def test_everything_wrong_is_told_at_once_with_lines_and_the_nearest_names() -> None:
    text = SIX.replace('use: shout, inputs: {text: "${two}!"}', 'use: shoutt, inputs: {text: "${two}!"}')
    text = text.replace('"${one} and more"', '"${on} and more"').replace('{text: "${b}"}', '{txt: "${b}"}')
    with pytest.raises(WorkflowError) as caught:
        compiled(text)
    said = str(caught.value)
    for line, words in ((8, "txt"), (9, "on"), (12, "shoutt")):
        assert any(f"flow.yaml:{line}:" in each and words in each for each in said.splitlines()), said
    assert "did you mean" in said


NODE = "nodes:\n  a: {use: shout, inputs: {text: x}}\n"
OUT = "outputs: {o: '${a}'}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", ":1: a workflow must be a mapping"),
        (OUT, "the workflow has no nodes"),
        (NODE, "the workflow has no outputs"),
        ("name: 1\n" + NODE + OUT, ":1: `name` must be text"),
        ("nods: {}\n" + NODE + OUT, "no key of a workflow is called `nods`"),
        ("nodes: [a]\n" + OUT, "`nodes` must be a mapping of names"),
        (NODE + "outputs: {o: x}", "the output `o` must be one reference"),
        (NODE + "outputs: {o: 'an ${a}'}", "the output `o` must be one reference"),
        (NODE + "outputs: {1o: '${a}'}", "`1o` is not a valid name for an output"),
        ("nodes: {'a b': {use: paint}}\n" + OUT, "`a b` is not a valid name for a node"),
        (f"nodes: {{{'a' * 51}: {{use: paint}}}}\n" + OUT, "a name is|is not a valid name"),
        ("nodes: {item: {use: paint}}\n" + OUT, "`item` is reserved for `map`, `repeat` and loops"),
        ("inputs: {a: text}\n" + NODE + OUT, ":3: `a` is already the name of an input"),
        ("nodes:\n  a: {inputs: {}}\n" + OUT, ":2: the node has no action"),
        ("nodes: {a: paint}\n" + OUT, "the node has no action"),
        ("nodes: {a: {use: paint, pick: x}}\n" + OUT, "the node has both `use` and `pick`"),
        ("nodes: {a: {use: paint, best: 1}}\n" + OUT, "no key of a node with `use` is called `best`"),
        ("nodes: {a: {use: [paint]}}\n" + OUT, "no generator is called"),
        ("nodes: {a: {use: paint, map: [1], repeat: 2}}\n" + OUT, "`map` and `repeat` cannot be combined"),
        ("nodes: {a: {use: paint, when: sometimes}}\n" + OUT, "`when` takes true, false or a condition"),
        ("nodes: {a: {use: paint, inputs: {colour: red}}}\n" + OUT, "no input of `paint` is called `colour`"),
        ("nodes: {a: {use: paint, inputs: {width: 65}}}\n" + OUT, "`width` is 65"),
        ("nodes: {a: {use: paint, inputs: 3}}\n" + OUT, "`inputs` must be a mapping of names"),
        ("nodes: {a: {use: shout}}\n" + OUT, "`shout` needs `text`"),
        ("nodes: {a: {use: shout, inputs: {text: '${x()}'}}}\n" + OUT, "cannot contain a call"),
        ("nodes: {a: {pick: [1, 2]}}\n" + OUT, "`pick` needs scores"),
        ("nodes: {a: {workflow: x.yaml, map: [1]}}\n" + OUT, "no key of a node with `workflow` is called `map`"),
    ],
)
def test_what_is_wrong_is_told(text: str, reason: str) -> None:
    with pytest.raises(WorkflowError, match=reason):
        compiled(text)


def test_the_number_of_nodes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_NODES", 5)
    with pytest.raises(WorkflowError, match=":12: the workflow has more than 5 nodes"):
        compiled(SIX + "\n")


def test_names_and_defaults_of_the_file(write: Write, host: studio.Studio) -> None:
    graph = host.workflow(write(NODE + OUT, "bare.yaml"))
    assert (graph.name, graph.about, list(graph.outputs), graph.file) == (
        "bare",
        "",
        ["o"],
        write("", "x").parent / "bare.yaml",
    )
    named = compiled("name: a name\nabout: what\n" + NODE + OUT)
    assert (named.name, named.about, named.file) == ("a name", "what", None)


INNER = "inputs:\n  word: text\n  times: {type: int, default: 2, ge: 1, le: 3}\nnodes:\n" \
        "  loud: {use: shout, inputs: {text: '${word}', times: '${times}'}}\noutputs: {all: '${loud}'}\n"  # fmt: skip


def test_a_sub_workflow_passes_inputs_in_and_outputs_out(write: Write, host: studio.Studio) -> None:
    write(INNER, "parts/inner.yaml")
    text = (
        "inputs: {w: text}\nnodes:\n  sub: {workflow: parts/inner.yaml, inputs: {word: '${w}'}}\n"
        "  more: {use: shout, inputs: {text: '${sub.all}!'}}\noutputs: {all: '${sub.all}', more: '${more}'}\n"
    )
    result = host.run(write(text), w="a")
    assert (result["all"].text, result["more"].text) == ("A A", "A A!")
    assert "sub/loud" in result.nodes


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ("{}", r"`inner\.yaml` needs `word`"),
        ("{word: a, tims: 1}", "no input of `inner.yaml` is called `tims`.*"),
        ("{word: a, times: 9}", "`times` is 9"),
        ("{word: ['a']}", "must be text"),
    ],
)
def test_a_sub_workflows_inputs_are_checked(write: Write, host: studio.Studio, inputs: str, reason: str) -> None:
    write(INNER, "inner.yaml")
    file = write(f"nodes:\n  sub: {{workflow: inner.yaml, inputs: {inputs}}}\noutputs: {{o: '${{sub.all}}'}}\n")
    with pytest.raises(WorkflowError, match=reason):
        host.workflow(file)


def test_problems_in_a_sub_workflow_name_its_own_lines(write: Write, host: studio.Studio) -> None:
    write(INNER.replace("use: shout", "use: whisper"), "inner.yaml")
    file = write("nodes:\n  sub: {workflow: inner.yaml, inputs: {word: a}}\noutputs: {o: '${sub.al}'}\n")
    with pytest.raises(WorkflowError) as caught:
        host.workflow(file)
    assert any("inner.yaml:5: no generator is called `whisper`" in message for message, _ in caught.value.problems)
    file.write_text("nodes:\n  sub: {workflow: gone.yaml}\noutputs: {o: '${sub.all}'}\n")
    with pytest.raises(WorkflowError, match=r"flow\.yaml:2: .*gone\.yaml.*"):
        host.workflow(file)


def test_a_sub_workflow_that_includes_itself_is_refused(write: Write, host: studio.Studio) -> None:
    for name, other in (("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")):
        write(f"nodes:\n  sub: {{workflow: {other}}}\noutputs: {{o: '${{sub.o}}'}}\n", name)
    with pytest.raises(WorkflowError, match=r"`a\.yaml` includes itself, or is nested more than 8 deep"):
        host.workflow(write(Path(write("", "x").parent, "a.yaml").read_text(), "a.yaml"))


MEASURE = "nodes:\n  m: {use: measure, inputs: {images: [NAMED]}}\noutputs: {o: '${m}'}\n"


@pytest.mark.parametrize("kind", ["media", "workflow"])
@pytest.mark.parametrize(
    "named", ["../outside.png", "/etc/passwd", "sub/../../outside.png", "link/outside.png", "a\\0b"]
)
def test_a_file_names_nothing_outside_of_its_folder(
    write: Write, host: studio.Studio, tmp_path: Path, kind: str, named: str
) -> None:
    """Neither by a path, nor through a link."""
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "link").symlink_to(tmp_path)
    sub = f'nodes:\n  m: {{workflow: "{named}"}}\noutputs: {{o: "${{m.x}}"}}\n'
    file = write(MEASURE.replace("NAMED", f'"{named}"') if kind == "media" else sub, "flows/flow.yaml")
    with pytest.raises(WorkflowError, match="is outside the workflow's folder") as caught:
        host.workflow(file)
    assert "give others as inputs: `-p name=FILE`" in (caught.value.hint or "")


def test_media_in_its_folder_are_opened(write: Write, host: studio.Studio, tmp_path: Path) -> None:
    file = write(MEASURE.replace("NAMED", "here.png"))
    with pytest.raises(WorkflowError, match=r"flow\.yaml:2: .*here\.png"):
        host.workflow(file)
    Image.new("RGB", (3, 2)).save(tmp_path / "here.png")
    assert host.run(file)["o"].vector.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SIX.replace("${a}", "${''.__class__.__mro__}"), "__mro__"),
        (SIX.replace("${a}", "${a.__class__}"), "__class__"),
        (SIX.replace("${a}", "{% for i in range(10**9) %}x{% endfor %}"), "list"),
        (SIX.replace("${a}", "${range(10**9)}"), "a call"),
        (SIX.replace("${a}", "${a * 10**9}"), "cannot contain"),
    ],
)
def test_hostile_files_are_refused(text: str, reason: str) -> None:
    with pytest.raises(WorkflowError, match=reason):
        compiled(text)


TEXTS = [SIX, INNER, *(file.read_text("utf-8") for file in shipped().values())]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_an_error_or_a_graph(host: studio.Studio, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(len(text), at + 12)))
        put = data.draw(
            st.sampled_from(["", "${", "}", ":", "- ", "\n", "  ", "[", "]", "{", "&a ", "*a", "!!x ", "0"])
        )
        text = text[:at] + put + text[until:]
    with contextlib.suppress(StudioError):
        assert check.compile_document(parse(text, "flow.yaml"), host.generators).outputs is not None
