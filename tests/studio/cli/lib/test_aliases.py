"""Inputs given by other names on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import studio as library

from ..conftest import Studio

PLUGIN = '''
import studio


class Sized(studio.Generator):
    """Say what it was given."""

    name = "sized"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(20, ge=1, le=1000, help="how many", aliases=("num_inference_steps",))
        size: str = studio.field("8x8", help="WIDTHxHEIGHT", max_length=20, aliases=("{width}x{height}",))

    def generate(self, model, inputs, rng):
        return studio.Text(f"{inputs.steps} {inputs.size}")


@studio.hookimpl
def studio_generators():
    return [Sized()]
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "sized_plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-inference-steps", "4"], "4 8x8"),
        (["--num_inference_steps=4", "--width", "64", "--height", "32"], "4 64x32"),
        (["--steps", "5", "--size", "1x2"], "5 1x2"),
    ],
)
def test_aliases_are_flags_too(studio: Studio, plugin: Path, words: list[str], said: str) -> None:
    ran = studio("generate", "sized", *words, "-o", "made.txt", plugin=plugin)
    assert (ran.code, Path("made.txt").read_text()) == (0, said), ran.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "5", "--num-inference-steps", "5"], "`steps` and `num_inference_steps` are one input"),
        (["--width", "64"], "`width` is given without `height`"),
        (["--num-inference-steps", "0"], "`steps` is '0', but must be a whole number from 1 to 1000"),
    ],
)
def test_one_input_is_given_by_one_flag(studio: Studio, plugin: Path, words: list[str], told: str) -> None:
    ran = studio("generate", "sized", *words, plugin=plugin)
    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err


def test_help_shows_the_main_names_only(studio: Studio, plugin: Path) -> None:
    shown = studio("generate", "sized", "--help", plugin=plugin).out
    assert "--steps" in shown
    assert "num" not in shown.replace("number", "")
    assert "--width" not in shown


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("{num_inference_steps: 7, width: 64, height: 32}", "7 64x32"),
        ('{num_inference_steps: "${n}", width: "${n}", height: 32}', "9 9x32"),
        ("{steps: 7, size: 1x1}", "7 1x1"),
    ],
)
def test_workflows_take_aliases(plugin: Path, tmp_path: Path, inputs: str, said: str) -> None:
    with library.Studio(plugins=[plugin], device="cpu") as host:
        made = host.run(workflow(tmp_path, inputs), n=9).outputs["out"]
    assert made == said
    assert set(made.recipe.spec.inputs) == {"steps", "size"}


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ("{steps: 7, num_inference_steps: 7}", "`steps` and `num_inference_steps` are one input, and both are given"),
        ("{width: 64}", "`width` is given without `height`"),
        ("{num_steps: 64}", "no input of `sized` is called `num_steps`"),
        ("{num_inference_steps: 0}", "`steps` is 0"),
    ],
)
def test_workflows_name_what_is_wrong_with_aliases(plugin: Path, tmp_path: Path, inputs: str, told: str) -> None:
    with library.Studio(plugins=[plugin], device="cpu") as host, pytest.raises(library.errors.WorkflowError) as caught:
        host.workflow(workflow(tmp_path, inputs))
    assert told in caught.value.message
    assert len(caught.value.problems) == 1


def workflow(folder: Path, inputs: str) -> Path:
    path = folder / "flow.yaml"
    path.write_text(
        "name: flow\ninputs:\n  n: {type: int, default: 9, help: how many}\n"
        f"nodes:\n  one: {{use: sized, inputs: {inputs}}}\noutputs:\n  out: ${{one}}\n"
    )
    return path
