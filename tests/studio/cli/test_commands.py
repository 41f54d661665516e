"""Start-up, help, show, replay, plugins, doctor and train."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.cli.main import hoist
from studio.extensions import HOST_COMMANDS
from studio.plugins.commands import find

from .conftest import PROBE, Studio

HEAVY = ("torch", "numpy", "PIL", "pydantic", "rich", "diffusers", "transformers")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["doctor", "--help"], ["train", "--hlep"]])
def test_starting_loads_nothing_heavy(argv: list[str]) -> None:
    code = f"import sys; from studio.cli.main import run; run({argv}); print([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_listing_and_helping_load_no_torch(studio: Studio) -> None:
    code = "import sys; from studio.cli.main import run; run({!r}); print([m for m in {!r} if m in sys.modules])"
    words = ["--plugin", str(PROBE), "generate", "echo", "--help"]
    command = [sys.executable, "-c", code.format(words, ("torch", "numpy", "diffusers"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command(studio: Studio) -> None:
    ran = studio("--help", plugin=None)
    assert ran.code == 0
    assert re.findall(r"^  (\w+)  +[A-Z]", ran.out.partition("Commands:")[2], re.M) == [
        *find().commands,
        *HOST_COMMANDS,
    ]
    assert studio("generate", "--help").out.count("Say the text again.") == 1


def test_version(studio: Studio) -> None:
    assert studio("--version", plugin=None).out == f"studio {version('multimodal-studio')}\n"


def test_no_words_at_all_show_the_help_as_a_usage_error(studio: Studio) -> None:
    ran = studio(plugin=None)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: studio" in ran.err


WORDS = st.lists(st.sampled_from(["image", "a red apple", "--steps", "5", "-o", "x.png", "--json"]))
GLOBALS = st.sampled_from([["--quiet"], ["--debug"], ["--home", "h"], ["--plugin", "p.py"], ["--device=cpu"], ["-q"]])


@given(st.lists(st.tuples(WORDS, GLOBALS)), WORDS)
def test_global_options_move_to_the_front_and_all_else_stays(
    parts: list[tuple[list[str], list[str]]], end: list[str]
) -> None:
    argv = [word for words, options in parts for word in [*words, *options]] + end
    front = [word for _, options in parts for word in options]
    rest = [word for words, _ in parts for word in words] + end
    assert hoist(argv) == front + rest
    assert hoist([*rest, "--", *front]) == [*rest, "--", *front]  # behind `--` everything is meant as it stands


def test_a_global_option_without_its_value_is_refused() -> None:
    with pytest.raises(click.UsageError, match="`--home` needs a value"):
        hoist(["image", "--home"])


def test_show_reads_a_file_and_an_id(studio: Studio) -> None:
    assert studio("generate", "dot", "a dot", "--seed", "9", "-o", "dot.png").code == 0
    by_file = json.loads(studio("show", "dot.png", "--json").out)
    by_id = json.loads(studio("show", by_file["sha256"][:10], "--json").out)
    assert by_file["sha256"] == by_id["sha256"]
    assert by_file["recipe"]["spec"]["inputs"] == by_id["recipe"]["spec"]["inputs"] == {"prompt": "a dot", "side": 8}
    rows = [line.split("\t") for line in studio("show", "dot.png").lines]
    assert rows[0] == ["prompt", "a dot"]
    assert rows[1] == ["seed", "9"]
    assert rows[2][0] == "made by"
    assert rows[2][1].startswith("dot 1 (")
    assert ["inputs.side", "8"] in rows


def test_replay_says_identical(studio: Studio) -> None:
    studio("generate", "dot", "x", "-o", "dot.png")
    ran = studio("replay", "dot.png", "-o", "again.png")
    assert (ran.code, ran.out) == (0, "identical\n")
    assert Path("again.png").read_bytes() == Path("dot.png").read_bytes()
    assert json.loads(studio("replay", "dot.png", "--json").out)["identical"] is True


def test_replay_asks_before_it_runs_what_was_made_elsewhere(studio: Studio) -> None:
    studio("generate", "dot", "x", "-o", "dot.png")
    ran = studio("replay", "dot.png", "--home", "other")
    assert (ran.code, ran.out) == (2, "")
    assert "`dot.png` was not made in this data folder. Its recipe would run:" in ran.err
    assert "prompt: x" in ran.err
    assert "studio replay --yes" in ran.err
    assert not Path("other", "objects").exists()
    ran = studio("replay", "dot.png", "--home", "other", "--yes")
    assert (ran.code, ran.out) == (0, "identical\n")


def test_replay_says_how_far_and_what_changed(studio: Studio) -> None:
    source = PROBE.read_text()
    plugin = Path("changing.py")
    plugin.write_text(source)
    studio("generate", "dot", "x", "--seed", "100", "-o", "dot.png", plugin=plugin)
    plugin.write_text(source.replace("rng.seed % 256", "rng.seed % 256 + 3"))
    ran = studio("replay", "dot.png", plugin=plugin)
    assert ran.code == 1
    assert ran.lines[0] == "different: at most 3, mean 3"
    assert "last bits" not in ran.err
    assert any(line.startswith("changed: plugin.version: sha256:") for line in ran.lines[1:])
    told = json.loads(studio("replay", "dot.png", "--json", plugin=plugin).out)
    assert (told["identical"], told["max_abs_diff"]) == (False, 3.0)


def test_plugins_lists_what_is_offered(studio: Studio) -> None:
    told = {each["name"]: each for each in json.loads(studio("plugins", "--json").out)}
    assert told[PROBE.stem]["status"] == "ok"
    assert told[PROBE.stem]["generators"] == ["echo", "dot", "slow"]
    assert told[PROBE.stem]["trainers"] == ["lesson"]
    assert told[PROBE.stem]["reason"] is None


def test_doctor_tells_devices_and_every_attention_backend(start: Callable[..., subprocess.Popen[str]]) -> None:
    out, err = start("doctor", "--json").communicate(timeout=500)
    told = json.loads(out)
    assert err == ""
    assert told["libraries"]["torch"]
    assert told["devices"][0]["name"] == "cpu"
    assert all(each["available"] or each["reason"] for each in told["attention"])


def test_train_has_flags_from_options_and_writes_no_data(studio: Studio) -> None:
    topic = "the [bold]whole[/bold] history of music, from the first flute of bone that anyone has found to this day"
    ran = studio("train", "lesson", topic, "--hours", "2.5")
    assert (ran.code, ran.out, ran.err) == (0, "", f"learning [{topic}] for 2.5 h\n")
    assert "what to learn" in studio("train", "lesson", "--help").out


def test_train_takes_the_device_of_studio(studio: Studio) -> None:
    """`--device` reaches a recipe that computes; one that does not refuses it."""
    refused = studio("train", "lesson", "music", "--device", "cpu")
    assert refused.code == 2
    assert "does not use a device" in refused.err
    PIL.Image.new("RGB", (8, 8)).save("one.png")
    reached = studio("train", "vae", "--data", ".", "--device", "cuda:99")
    assert reached.code == 2
    assert "`cuda:99`" in reached.err
