"""Types: each value that does not fit is told once, with the remedy."""

from __future__ import annotations

import pytest

from studio.errors import WorkflowError
from studio.workflow.ports import Port

from .conftest import SIX, compiled


def flow(node: str, inputs: str = "") -> str:
    return (
        "inputs:\n  word: text\n  n: int\n  half: float\n  words: {type: text, list: true}\n"
        "  numbers: {type: int, list: true}\n" + inputs + "nodes:\n"
        "  picture: {use: paint}\n  pictures: {use: paint, repeat: 3}\n"
        "  scores: {use: measure, inputs: {images: '${pictures}'}}\n"
        f"  node: {node}\noutputs: {{out: '${{node}}'}}\n"
    )


@pytest.mark.parametrize(
    ("node", "port"),
    [
        ("{use: shout, inputs: {text: '${word}'}}", Port("text")),
        ("{use: shout, map: '${words}', inputs: {text: '${item} ${number} ${index}'}}", Port("text", many=True)),
        ("{use: shout, repeat: '${n}', inputs: {text: 'x${number}', times: '${number}'}}", Port("text", many=True)),
        ("{use: shout, inputs: {text: '${picture.width} x ${picture.height}'}}", Port("text")),
        ("{use: paint, inputs: {width: '${picture.width}'}}", Port("image")),
        ("{use: measure, inputs: {images: ['${picture}', '${picture}'], scale: '${n}'}}", Port("embedding")),
        ("{use: shout, inputs: {text: '${scores[0] | round(2)} ${words | join}'}}", Port("text")),
        ("{use: shout, inputs: {text: '{% for s in scores %}${s} {% endfor %}'}}", Port("text")),
        ("{use: shout, inputs: {text: \"${'some' if words and picture else 'none'}\"}}", Port("text")),
        ("{pick: '${pictures}', by: '${scores}'}", Port("image")),
        ("{pick: '${words}', by: '${numbers}', best: '${n}'}", Port("text", many=True)),
        ("{pick: ['${word}', b], by: [1, 2.5]}", Port("text")),
        ("{use: shout, when: '${n > 1 and word}', seed: 3, inputs: {text: a}}", Port("text")),
    ],
)
def test_what_fits(node: str, port: Port) -> None:
    graph = compiled(flow(node))
    assert graph.ports["node"] == port
    assert graph.ports[".out"] == port


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("{use: measure, inputs: {images: '${picture}'}}",
         r"`images` of `measure` must be a list, each a picture, not a picture.*|write a list"),
        ("{use: measure, inputs: {images: '${words}'}}", "must be a list, each a picture, not a list, each text"),
        ("{use: shout, inputs: {text: '${words}'}}", "`text` of `shout` must be text, not a list, each text"),
        ("{use: shout, inputs: {text: '${n}'}}", "must be text, not a whole number"),
        ("{use: shout, inputs: {text: a, times: '${half}'}}", "`times` of `shout` must be a whole number, not a num"),
        ("{use: shout, inputs: {text: 'a ${picture}'}}", "`picture` is a picture, which cannot be inserted into text"),
        ("{use: shout, inputs: {text: 'a ${words}'}}", "`words` is a list, each text, which cannot be inserted"),
        ("{use: shout, inputs: {text: '${words if n else word}!'}}", "`words` is a list, each text, which cannot"),
        ("{use: shout, inputs: {text: '{% for x in word %}{% endfor %}'}}", "a loop needs a list; `word` is text"),
        ("{use: shout, inputs: {text: '${word.width}'}}", "`word` is text and has no `.width`"),
        ("{use: shout, inputs: {text: '${picture.size}'}}", "is a picture and has no `.size`"),
        ("{use: shout, map: '${word}', inputs: {text: '${item}'}}", "`map` must be a list, not text"),
        ("{use: shout, repeat: '${half}', inputs: {text: a}}", "`repeat` must be a whole number, not a number"),
        ("{use: shout, repeat: -1, inputs: {text: a}}", "`repeat` is -1, but must be a whole number of at least 0"),
        ("{use: shout, repeat: true, inputs: {text: a}}", "`repeat` is True, but must be a whole number"),
        ("{use: shout, seed: 1.5, inputs: {text: a}}", "`seed` is 1.5, but must be a whole number"),
        ("{use: shout, repeat: 2, inputs: {text: '${item}'}}", "`item` is only defined with `map`"),
        ("{use: shout, inputs: {text: '${number}'}}", "`number` is only defined with `map` or `repeat`"),
        ("{use: shout, inputs: {text: '${wrd}'}}", "no input or node is called `wrd`"),
        ("{pick: '${picture}', by: '${scores}'}", "`pick` must be a list, not a picture"),
        ("{pick: '${pictures}', by: '${words}'}", "`by` must be scores"),
        ("{pick: '${pictures}', by: '${scores}', best: 0}", "`best` is 0, but must be a whole number of at least 1"),
        ("{pick: ['${words}', a], by: [1, 2]}", "a list cannot hold a list"),
    ],
)  # fmt: skip
def test_what_does_not_fit(node: str, reason: str) -> None:
    with pytest.raises(WorkflowError, match=reason) as caught:
        compiled(flow(node))
    assert len(caught.value.problems) == 1, "told once"
    assert caught.value.problems[0][0].startswith("flow.yaml:11: ")


def test_the_remedy_is_named() -> None:
    for node, hint in (
        ("{use: shout, inputs: {text: '${words}'}}", "add `map: ${LIST}` and take `${item}`"),
        ("{use: measure, inputs: {images: '${picture}'}}", "write a list: `[${NAME}]`"),
        ("{use: shout, inputs: {text: 'a ${words}'}}", "use `join`"),
    ):
        with pytest.raises(WorkflowError) as caught:
            compiled(flow(node))
        assert hint in (caught.value.hint or "")


def test_a_cycle_is_told_with_its_nodes() -> None:
    with pytest.raises(WorkflowError, match=r"the nodes form a cycle: .*`one`") as caught:
        compiled(SIX.replace('{text: "${a}"}', '{text: "${five}"}'))
    assert {f"`{name}`" for name in ("one", "three", "five")} <= set(caught.value.message.split())


def test_what_depends_on_a_mistake_is_not_told_of_again() -> None:
    with pytest.raises(WorkflowError) as caught:
        compiled(SIX.replace('two: {use: shout, inputs: {text: "${b}"}}', 'two: {use: shout, inputs: {text: "${bb}"}}'))
    assert len(caught.value.problems) == 1
