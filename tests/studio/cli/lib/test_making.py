"""`studio generate NAME`: flags from Inputs, where results go, several at once, failures among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.media import Image, Text

from ..conftest import Studio, files


def test_prints_the_path_in_the_store_and_nothing_else(studio: Studio, own_home: Path) -> None:
    ran = studio("generate", "echo", "hello", "--seed", "5")
    assert ran.code == 0
    path = Path(ran.out.removesuffix("\n"))
    assert path.is_relative_to(own_home)
    assert path.read_text() == "hello | 1 plain 1x1  | 5"
    assert "a stray print" in ran.err  # what a plugin prints is no data


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--text", "a", "--times", "2"], "a a | 1 plain 1x1 "),
        (["a", "--loud", "--weight", "0.5"], "A | 0.5 plain 1x1 "),
        (["a", "--no-loud", "--style", "fancy"], "a | 1 fancy 1x1 "),
        (["a", "--tags", "b", "--tags", "c"], "a b c | 1 plain 1x1 "),
        (["a", "--size", "[2, 3]"], "a | 1 plain (2, 3) "),
        (["a", "--size", "2x3"], "a | 1 plain 2x3 "),
        (["a", "--input-device", "mine"], "a | 1 plain 1x1 mine"),
        (["--", "--loud"], "--loud | 1 plain 1x1 "),
    ],
)
def test_flags_follow_from_the_inputs(studio: Studio, argv: list[str], said: str) -> None:
    ran = studio("generate", "echo", "--seed", "5", "-o", "said.txt", *argv)
    assert (ran.code, ran.out) == (0, "said.txt\n")
    assert Path("said.txt").read_text() == f"{said} | 5"


def test_help_has_every_input_with_range_and_default(studio: Studio) -> None:
    ran = studio("generate", "echo", "--help")
    text = " ".join(ran.out.split())
    assert "Say the text again. One input of each kind" in text
    assert "--times N how often (1 to 9) [default: 1]" in text
    assert "--loud / --no-loud in capitals [default: no]" in text
    assert "--tags TEXT what to add (repeatable)" in text
    assert "null" not in text
    assert "--text TEXT what to say" in text
    assert "[required]" in text
    assert "generate echo [OPTIONS] [TEXT]" in text


def test_global_options_may_stand_after_the_command(studio: Studio, tmp_path: Path) -> None:
    ran = studio("generate", "echo", "a", "--home", str(tmp_path / "elsewhere"), "--quiet")
    assert Path(ran.out.strip()).is_relative_to(tmp_path / "elsewhere")


def test_several_go_to_a_folder_named_by_generator_seed_and_id(studio: Studio) -> None:
    ran = studio("generate", "dot", "x", "-n", "3", "--seed", "7", "-o", "dots")
    assert ran.code == 0
    assert [Path(line).name.rpartition("-")[0] for line in ran.lines] == ["dot-7", "dot-8", "dot-9"]
    assert files(Path()) == sorted(ran.lines)
    for line in ran.lines:
        assert Path(line).stem.endswith(Image.open(line).sha256[:8])
    assert studio("generate", "dot", "x", "-n", "3", "--seed", "7", "-o", "dots").out == ran.out  # the same files again


def test_one_goes_to_a_folder_that_exists_or_ends_in_a_slash(studio: Studio) -> None:
    first = studio("generate", "dot", "x", "--seed", "7", "-o", "new/folder/")
    again = studio("generate", "dot", "x", "--seed", "7", "-o", "new/folder")
    assert first.out == again.out
    assert first.out.startswith("new/folder/dot-7-")


def test_no_file_is_overwritten_without_force(studio: Studio) -> None:
    Path("mine.png").write_text("precious")
    ran = studio("generate", "dot", "x", "-o", "mine.png")
    assert ran.code == 1
    assert "`mine.png` already exists" in ran.err
    assert "--force" in ran.err
    assert Path("mine.png").read_text() == "precious"
    assert studio("generate", "dot", "x", "-o", "mine.png", "--force").code == 0
    assert Image.open("mine.png").size == (8, 8)


def test_json_tells_path_seed_and_hash(studio: Studio) -> None:
    ran = studio("generate", "slow", "-n", "2", "--seed", "3", "-o", "out/", "--json")
    told = json.loads(ran.out)
    assert [each["seed"] for each in told] == [3, 4]
    for each in told:
        assert Text.open(each["path"]).sha256 == Text.open(each["stored"]).sha256 == each["sha256"]
        assert each["notices"] == ["it counts"]


def test_notices_are_told_once_and_not_when_quiet(studio: Studio) -> None:
    assert studio("generate", "slow", "-n", "3").err.count("note: it counts") == 1
    assert studio("generate", "slow", "-n", "3", "--quiet").err == ""


def test_previews_are_saved_when_asked_for(studio: Studio) -> None:
    ran = studio("generate", "slow", "--steps", "4", "--seed", "1", "--previews", "rough", "--preview-every", "2")
    assert ran.code == 0
    names = files(Path("rough"))
    assert names
    assert all(name.startswith("slow-step") for name in names)


def test_one_failure_among_several_costs_only_itself(studio: Studio) -> None:
    ran = studio("generate", "slow", "-n", "3", "--seed", "1", "--fail-seed", "2", "-o", "out/")
    assert ran.code == 1
    assert [line.rpartition("-")[0] for line in ran.lines] == ["out/slow-1", "out/slow-3"]
    assert "error: 1 of 3 failed: " in ran.err
    assert "this seed fails" in ran.err
    assert "Traceback" not in ran.err

    told = json.loads(studio("generate", "slow", "-n", "2", "--seed", "1", "--fail-seed", "2", "--json").out)
    assert "this seed fails" in told[1]["error"]


def test_debug_shows_the_plugins_traceback(studio: Studio) -> None:
    ran = studio("generate", "slow", "--seed", "1", "--fail-seed", "1", "--debug")
    assert ran.code == 1
    assert "probe_plugin.py" in ran.err
    assert "Traceback" in ran.err


def test_control_characters_reach_the_file_and_not_the_terminal(studio: Studio) -> None:
    prompt = "red\x1b[31m\r\u202eapple"
    assert studio("generate", "dot", prompt, "-o", "dot.png").code == 0
    shown = studio("show", "dot.png")
    assert r"red\x1b[31m\r\u202eapple" in shown.out
    assert json.loads(studio("show", "dot.png", "--json").out)["recipe"]["spec"]["inputs"]["prompt"] == prompt
    refused = studio("generate", "echo", "a", "--style", prompt)
    assert "\x1b" not in refused.err
    assert "\r" not in refused.err
