"""`studio plugins new` and `studio plugins check`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from ..conftest import Studio


def test_new_prints_the_folder_and_refuses_what_is_there(studio: Studio) -> None:
    ran = studio("plugins", "new", "soft-glow", "--family", "text", "--in", "sub")
    assert (ran.code, ran.out) == (0, "sub/soft-glow\n")
    again = studio("plugins", "new", "soft-glow", "--in", "sub")
    assert (again.code, again.out) == (2, "")
    assert "`sub/soft-glow` already exists" in again.err
    taken = studio("plugins", "new", "echo")
    assert taken.code == 2
    assert "the generator `echo` already exists" in taken.err


def test_check_says_what_was_found(studio: Studio) -> None:
    studio("plugins", "new", "soft-glow", "--stepped")
    plugin = ("--plugin", "soft-glow/studio_soft_glow")
    ran = studio(*plugin, "plugins", "check", "soft-glow", "--input", "steps=3", "--input", "size=32", plugin=None)
    assert ran.code == 0, ran.out
    assert {line.split("\t")[2] for line in ran.lines} == {"passed"}
    ran = studio(*plugin, "plugins", "check", "studio_soft_glow", "--json", plugin=None)  # by the plugin's name
    [report] = json.loads(ran.out)
    assert report["passed"] is True
    numbers = {finding["check"]: finding["numbers"] for finding in report["findings"]}
    assert numbers["batched as alone"] == {"width": 3, "apart": 0.0}


def test_check_fails_where_the_generator_does(studio: Studio) -> None:
    studio("plugins", "new", "soft-glow")
    code = Path("soft-glow/studio_soft_glow/__init__.py")
    code.write_text(code.read_text("utf-8").replace("default_rng(rng.seed)", "default_rng()"))
    ran = studio("--plugin", str(code.parent), "plugins", "check", "soft-glow", plugin=None)
    assert ran.code == 1
    assert [line.split("\t")[1] for line in ran.lines if line.split("\t")[2] == "failed"] == [
        "seed decides",
        "runs on a GPU",
    ]


def test_check_refuses_names_that_are_none(studio: Studio) -> None:
    ran = studio("plugins", "check", "soft-glwo")
    assert ran.code == 2
    assert "no generator is called `soft-glwo`" in ran.err
    ran = studio("plugins", "check", "echo", "--input", "text")
    assert ran.code == 2
    assert "must be NAME=VALUE" in ran.err
